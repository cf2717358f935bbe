"""When a Prefect task is worth running again."""

from typing import Any

from prefect.client.schemas.objects import State
from prefect.exceptions import MissingResult

from lorif_core.errors import LorifError


async def worth_retrying(_task: Any, _run: Any, state: State) -> bool:
    """Not for errors that we raise ourselves: the same run would end the same way."""
    try:
        outcome = await state.aresult(raise_on_failure=False)
    except MissingResult:
        return True
    return not isinstance(outcome, LorifError)
