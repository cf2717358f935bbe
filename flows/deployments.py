"""The flows as Prefect's own, which `prefect.yaml` deploys."""

import flows.attribute
import flows.build
import flows.update

build = flows.build.build.prefect
update = flows.update.update.prefect
attribute = flows.attribute.attribute.prefect
