"""Parameters of flows, as a deployment or a person at the Prefect UI gives them."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from lorif_core.config import Config
from lorif_core.config_file import load_config, parse_config


def _as_config(given: Any) -> Any:
    """Raises UserError, which is one sentence, where pydantic would list what it has tried."""
    if isinstance(given, str):
        return load_config(given)
    return parse_config(given) if isinstance(given, dict) else given


ConfigParameter = Annotated[Config, BeforeValidator(_as_config, json_schema_input_type=Config | str)]
"""A CONFIG: its keys, or the path of its YAML file where the flow runs."""
