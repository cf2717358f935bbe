"""Step of `prefect deploy`: the work queue that whatever commits waits in, and how many of it run at a time."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound


async def limit_queue(pool: str, queue: str, limit: int) -> dict[str, Any]:
    """Make a work queue of a pool, or change one, so that at most `limit` of its runs are under way.

    A deployment's own `concurrency_limit` would hold only among runs of that deployment.
    """
    async with get_client() as client:
        try:
            found = await client.read_work_queue_by_name(queue, work_pool_name=pool)
            await client.update_work_queue(found.id, concurrency_limit=limit)
        except ObjectNotFound:
            await client.create_work_queue(queue, concurrency_limit=limit, work_pool_name=pool)
    return {}
