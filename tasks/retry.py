"""When a failed task runs again."""

from typing import Any

from lorif_core.errors import LorifError, StoreUnavailableError
from lorif_core.out_of_memory import is_out_of_memory

DELAYS = [5.0, 30.0]  # seconds: enough for a store to restart


def may_succeed_later(error: object) -> bool:
    """Whether another run may succeed: a store may recover, but our other errors would occur again."""
    if isinstance(error, StoreUnavailableError):
        return True
    return not isinstance(error, LorifError) and not (isinstance(error, Exception) and is_out_of_memory(error))


async def _worth_retrying(_task: Any, _run: Any, state: Any) -> bool:
    from prefect.exceptions import MissingResult

    try:
        return may_succeed_later(await state.aresult(raise_on_failure=False))
    except MissingResult:
        return True


PREFECT_RETRIES: dict[str, Any] = {  # keyword arguments of Prefect's `task` for a task that may run again
    "retries": len(DELAYS),
    "retry_delay_seconds": DELAYS,
    "retry_condition_fn": _worth_retrying,
}
