"""When a Prefect task is worth running again."""

from typing import Any

from prefect.client.schemas.objects import State
from prefect.exceptions import MissingResult

from lorif_core.errors import LorifError, StoreUnavailableError

RETRY_DELAYS = [5.0, 30.0]  # seconds: a store that is restarted is back by then


async def worth_retrying(_task: Any, _run: Any, state: State) -> bool:
    """A store may recover; with our other errors the same run would end the same way."""
    try:
        outcome = await state.aresult(raise_on_failure=False)
    except MissingResult:
        return True
    return isinstance(outcome, StoreUnavailableError) or not isinstance(outcome, LorifError)
