"""Types of flow parameters, as a deployment or the Prefect UI passes them."""

from typing import Annotated, Any

from pydantic import BeforeValidator

from lorif_core.config import Config
from lorif_core.config_file import load_config, parse_config


def _as_config(value: Any) -> Any:
    """A Config from a path or its keys. Raises UserError, where pydantic would list every alternative it tried."""
    if isinstance(value, str):
        return load_config(value)
    return parse_config(value) if isinstance(value, dict) else value


ConfigParameter = Annotated[Config, BeforeValidator(_as_config, json_schema_input_type=Config | str)]
"""A CONFIG: its keys, or the path of its YAML file on the machine where the flow runs."""
