"""A step of `prefect deploy`: the work queue of all runs that commit, and how many of them run at a time."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound


async def limit_queue(pool: str, queue: str, limit: int) -> dict[str, Any]:
    """Create or change a work queue of a pool, so that at most `limit` of its runs are active.

    The `concurrency_limit` of a deployment would apply only to the runs of that deployment.
    """
    async with get_client() as client:
        try:
            existing = await client.read_work_queue_by_name(queue, work_pool_name=pool)
            await client.update_work_queue(existing.id, concurrency_limit=limit)
        except ObjectNotFound:
            await client.create_work_queue(queue, concurrency_limit=limit, work_pool_name=pool)
    return {}
