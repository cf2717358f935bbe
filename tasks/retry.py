"""When Prefect runs a failed task again."""

from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import MissingResult

from lorif_core.errors import LorifError, StoreUnavailableError
from lorif_core.out_of_memory import is_out_of_memory

_DELAYS = [5.0, 30.0]  # seconds: enough for a store to restart


async def _worth_retrying(_task: Any, _run: Any, state: State) -> bool:
    """Whether another run may succeed: a store may recover, but our other errors would occur again."""
    try:
        outcome = await state.aresult(raise_on_failure=False)
    except MissingResult:
        return True
    if isinstance(outcome, StoreUnavailableError):
        return True
    is_final = isinstance(outcome, LorifError) or (isinstance(outcome, Exception) and is_out_of_memory(outcome))
    return not is_final


RETRIED: dict[str, Any] = {  # keyword arguments of `task` for a task that may run again
    "cache_policy": NO_CACHE,
    "retries": len(_DELAYS),
    "retry_delay_seconds": _DELAYS,
    "retry_condition_fn": _worth_retrying,
}
