"""The commands `lorif status`, `remove`, `rollback`, `gc`, `compact` and `verify`; changes hold the lease."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Group

from flows.commands.early_checks import require_extras
from flows.commands.result import Result, listed
from flows.commands.shared import Bars, generation_summary, with_notes
from flows.tables import generations_table, verification_text
from lorif_core.config_file import parse_compute, parse_options, parse_storage, parse_update
from lorif_core.errors import UserError
from lorif_core.lifecycle.compaction import compact
from lorif_core.lifecycle.garbage import find_garbage, remove_garbage
from lorif_core.lifecycle.publishing import find_generation, rollback
from lorif_core.storage.lease import current_holder, hold_lease
from lorif_core.storage.objects import Objects
from lorif_core.tables.generation import Generation
from lorif_core.tables.store import Store
from tasks.environment import prepare_run


def run_status(index: str, overrides: Sequence[str]) -> Result:
    """`lorif status`."""
    store = _open_store(index, overrides)
    objects = Objects(index, store.storage)
    holder, recordings = current_holder(objects), _recordings(store)
    if holder is None and not recordings:
        store.latest()
    rows = [_status_row(store, generation) for generation in store.generations()]
    under_way = [*([] if holder is None else [str(holder)]), *recordings]
    text = Group(generations_table(rows), *(f"under way: {name}" for name in under_way))
    return Result({"index": index, "generations": rows, "under_way": under_way}, text)


def run_remove(index: str, overrides: Sequence[str], ids: str | None, where: str | None) -> Result:
    """`lorif remove`: runs without Prefect, which would keep the request in its database."""
    options = parse_options(list(overrides), ("storage", "compute", "update"))
    compute = parse_compute(options.get("compute", {}))
    # by default the curvature is fitted again, so that nothing of the rows remains in it
    settings = parse_update({"curvature": "refit", **options.get("update", {})})
    prepare_run(compute.ray)
    from lorif_core.lifecycle.removal import read_ids, rows_where, rows_with_ids
    from tasks.removal import remove_rows

    requested = read_ids(ids) if ids is not None else []
    store = Store(index, parse_storage(options.get("storage", {})))
    version = store.latest().factors_version
    rows = rows_with_ids(store, version, requested) if where is None else rows_where(store, version, where)
    if not rows.num_rows:
        raise UserError(f"{ids or where} matches no row of {index}; nothing was removed")
    with hold_lease(index, store.storage, "remove") as lease:
        generation = remove_rows(store, rows, compute, settings, lease)
    removed = set(rows.column("example_id").to_pylist())
    data = {
        "index": index,
        "generation": generation.generation,
        "rows": generation.rows,
        "removed": generation.changes["rows_removed"],
        "not_found": [example_id for example_id in requested if example_id not in removed],
        "changes": generation.changes,
    }
    advice = "earlier generations still have the rows; lorif gc --apply --keep 1 deletes them from storage"
    return listed(data, advice)


def run_rollback(index: str, overrides: Sequence[str], generation: int) -> Result:
    """`lorif rollback`: restores table versions by name, so the time does not depend on their size."""
    store = _open_store(index, overrides)
    find_generation(store, generation)
    with hold_lease(index, store.storage, "rollback") as lease:
        current = rollback(store, lease, generation)
    return with_notes({**generation_summary(index, current), "changes": current.changes})


def run_gc(index: str, overrides: Sequence[str], apply: bool, keep: int) -> Result:
    """`lorif gc`: lists garbage; with `apply` also deletes it, while it holds the lease."""
    store = _open_store(index, overrides)
    garbage = find_garbage(store, keep)
    if apply:
        with hold_lease(index, store.storage, "gc"):
            garbage = find_garbage(store, keep, lease_held=True)
            remove_garbage(store, garbage)
    removable: dict[str, list[Any]] = {
        "generations": list(garbage.generations),
        "fits": list(garbage.curvatures),
        "covariances": list(garbage.covariances),
        "files": [f"{file.table}/{file.name}" for file in garbage.files],
        "receipts": list(garbage.receipts),
        "uploads": [upload.key for upload in garbage.uploads],
    }
    data = {"index": index, "removed": apply, "bytes": garbage.bytes, **removable}
    items = [f"  {key}: {name}" for key, names in removable.items() for name in names]
    counts = [f"{key}: {len(names)}" for key, names in removable.items()]
    advice = [] if apply else ["nothing was removed; add --apply to remove it"]
    return Result(data, "\n".join([*items, *counts, f"bytes: {garbage.bytes}", *advice]))


def run_compact(index: str, overrides: Sequence[str]) -> Result:
    """`lorif compact`: the time depends on the bytes of the small fragments only."""
    store = _open_store(index, overrides)
    store.latest()
    with hold_lease(index, store.storage, "compact") as lease:
        current = compact(store, lease)
    fragments = len(store.rows.fragment_ids(current.factors_version))
    return with_notes({**generation_summary(index, current), "fragments": fragments})


def run_verify(index: str, overrides: Sequence[str], repair: bool) -> Result:
    """`lorif verify`: exit code 1 if something is damaged; with `repair` also publishes what can be repaired."""
    if repair:
        require_extras("lorif verify --repair", ("build",))
    options = parse_options(list(overrides), ("storage", "compute"))
    compute = parse_compute(options.get("compute", {}))
    prepare_run(compute.ray)
    from lorif_core.lifecycle.verify import verify

    store = Store(index, parse_storage(options.get("storage", {})))
    Objects(index, store.storage).check_container()
    with Bars() as bars:
        found = verify(store, bars.show)
    damage = [{**asdict(item), "advice": item.advice(index)} for item in found.damage]
    data: dict[str, Any] = {
        "index": index, "damage": damage, "generations": found.generations, "rows": found.rows,
        "rows_without_checksums": found.unchecked_rows, "files": found.files,
        "files_without_digest": found.unchecked_files,
    }  # fmt: skip
    if repair and damage:
        from tasks.repair import repair as publish_repaired

        with hold_lease(index, store.storage, "verify") as lease:
            refit = any(item.table == "curvature" for item in found.damage)
            generation = publish_repaired(store, found.damaged_files, compute, lease, refit=refit)
        data["repaired"] = {"generation": generation.generation, **generation.changes}
    return Result(data, verification_text(data), 1 if damage else 0)


def _open_store(index: str, overrides: Sequence[str]) -> Store:
    options = parse_options(list(overrides), ("storage",))
    return Store(index, parse_storage(options.get("storage", {})))


def _recordings(store: Store) -> list[str]:
    """The training that is recorded into the index, or was and is not published, as a sentence."""
    from lorif_core.recording.journal import Journal  # imports torch

    journal = Journal(store.uri, store.storage)
    recording = journal.current()
    if recording is None or not recording.is_open:
        return []
    progress = journal.progress(recording)
    step = max((process.step for process in progress), default=recording.attempts[-1])
    sentence = (
        f"the recording of the training {recording.run}, attempt {len(recording.attempts)} from step "
        f"{recording.attempts[-1] + 1}: {sum(process.rows for process in progress):,} rows up to step {step} by "
        f"{len(progress)} processes"
    )
    causes = [process.stopped for process in progress if process.stopped is not None]
    return [f"{sentence}; it has stopped: {causes[0]}" if causes else sentence]


def _status_row(store: Store, generation: Generation) -> dict[str, Any]:
    size = store.rows.code_bytes(generation.factors_version)
    return {
        "generation": generation.generation,
        "rows": generation.rows,
        "checkpoint": generation.checkpoint,
        "spec": generation.spec,
        "created_at": generation.created_at.isoformat(),
        "bytes": size,
        "bytes_per_example": size / max(generation.rows, 1),
        "parts": [
            {"checkpoint": part.checkpoint, "rows": part.rows, "asked_at_newest": part.follows is not None}
            for part in generation.parts
        ],
        "changes": generation.changes,
    }
