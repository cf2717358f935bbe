"""Invariant: a store that refuses a conditional put is understood, whichever way it says so."""

import pytest

from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError
from lorif_core.storage.objects import Objects
from tasks.demo.object_store import MotoServer
from tests.integration.s3 import BUCKET
from tests.servers.proxy import Fault, FaultProxy


@pytest.mark.parametrize(("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")])
def test_a_refusal_is_told_from_a_failure(s3_place: MotoServer, status: int, code: str) -> None:
    with FaultProxy(s3_place.url) as proxy:
        storage = StorageConfig(endpoint=proxy.url, region="us-east-1", allow_http=True)
        objects = Objects(f"s3://{BUCKET}/conditional-{status}", storage)
        assert objects.create("x.json", {"by": "us"}) and not objects.create("x.json", {"by": "others"})
        proxy.fault = Fault("answer", match="^PUT", status=status, code=code)
        assert not objects.create("x.json", {"by": "others"}), "another one's object is there"
        assert objects.create("x.json", {"by": "us"}), "our own write, whose answer was lost"
        proxy.fault = Fault("answer", match="^PUT", status=403, code="AccessDenied")
        with pytest.raises(LorifError, match="may not be written"):
            objects.create("y.json", {"by": "us"})
