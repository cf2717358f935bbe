"""What an update will do, worked out before anything is written: the corpus against the newest generation."""

import json
from dataclasses import dataclass

import numpy as np

from lorif_core.config import Config
from lorif_core.corpus import Listing, check_first_file, find_id, list_shards
from lorif_core.errors import UserError
from lorif_core.generation import Generation, Part
from lorif_core.inventory import Inventory
from lorif_core.layers import coverage, select_layers
from lorif_core.manifest import Changes, compare, known_files
from lorif_core.model import load_skeleton
from lorif_core.plan import BuildPlan, check_curvature, curvature_spec, make_spec
from lorif_core.prefix import unchanged_outside
from lorif_core.spec import parse_shard_key
from lorif_core.store import Store


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """A checked update.

    Attributes:
        base: the generation that it starts from; what came into the tables after it was never published.
        held: inventory of that generation.
        changes: what the corpus has otherwise.
        removals_pending: a removal was begun that the base does not honour yet.
        build: the shards to index, and those that stay.
        quarantined: (place, cause) of what the base is without, in files that are not looked at.
    """

    base: Generation
    held: Inventory
    changes: Changes
    removals_pending: bool
    build: BuildPlan
    quarantined: tuple[tuple[str, str], ...] = ()

    def is_needed(self, config: Config) -> bool:
        """Whether there is anything to do: in the corpus, or because settings of the index have changed."""
        part = self.part
        return (
            not self.changes.are_none
            or self.removals_pending
            or bool(self.build.damaged)
            or part is None
            or (part.curvature_spec, part.factored_query) != (self.build.curvature, config.query.factored)
        )

    @property
    def part(self) -> Part | None:
        """The part of the base that new rows belong to."""
        return next((part for part in self.base.parts if part.spec == self.build.spec.hash), None)


def preflight_update(config: Config) -> Generation:
    """The checks that cost no pass over the corpus; the generation that would be updated.

    Raises:
        UserError: as `make_update_plan`.
    """
    store = Store(config.index, config.storage)
    base = store.latest()
    store.check_spec(make_spec(config, load_skeleton(config.model, config.storage)))
    check_first_file(config.corpus, config.storage)
    return base


def make_update_plan(config: Config, remove_vanished: bool = False, within: str = "") -> UpdatePlan:
    """Compare the corpus with the newest generation. Files that it holds as they are now are not read.

    Files whose names do not begin with `within` are taken to be as the generation has them.

    Raises:
        UserError: there is no generation to update, it is of another spec, or as `make_plan`.
    """
    store = Store(config.index, config.storage)
    base = store.latest()
    skeleton = load_skeleton(config.model, config.storage)
    spec = make_spec(config, skeleton)
    store.check_spec(spec)
    held = store.inventory(base.factors_version)
    quarantined = [(place, cause) for place, cause in json.loads(base.quarantined_json)]
    known = known_files(held, [place for place, _ in quarantined])
    listing = unchanged_outside(list_shards(config.corpus, config.storage, known, within), held, within)
    changes = compare(held, listing, remove_vanished)
    _check_ids(config, store, held, listing, changes)
    rows = held.rows - changes.dropped_rows + sum(shard.rows for shard in changes.shards)
    check_curvature(config, spec.layers, rows)
    build = BuildPlan(
        spec=spec,
        shards=changes.shards,
        coverage=coverage(skeleton.model, select_layers(skeleton.model, config.model.layers)),
        curvature=curvature_spec(config),
        damaged=listing.damaged,
        kept=changes.kept,
        base_version=base.factors_version,
    )
    outside = tuple((place, cause) for place, cause in quarantined if not place.startswith(within))
    return UpdatePlan(base, held, changes, store.removed().num_rows != base.removals, build, outside)


def _check_ids(config: Config, store: Store, held: Inventory, listing: Listing, changes: Changes) -> None:
    """Refuse an id of a file that was read which a row that stays has, too: compared by hash, then by text."""
    column = config.corpus.id
    if column is None or not len(listing.id_hashes):
        return
    reread = {shard.file for shard in listing.shards}
    staying = [holding for holding in held.holdings if holding.key in changes.kept]
    others = {holding.shard for holding in staying if parse_shard_key(holding.shard)[0] not in reread}
    fragments = sorted({holding.fragment for holding in staying})
    suspects: dict[str, str] = {}
    for batch in store.metadata(held.version, ["example_id", "shard"], fragments):
        ids = [_record_id(text, config.corpus.chunk) for text in batch.column("example_id").to_pylist()]
        hashes = np.fromiter(map(hash, ids), np.int64, len(ids))
        for row in np.flatnonzero(np.isin(hashes, listing.id_hashes)).tolist():
            shard = batch.column("shard")[row].as_py()
            if shard in others:
                suspects[ids[row]] = shard
    if not suspects:
        return
    found = find_id(config.corpus, config.storage, {file.name for file in reread}, suspects.keys())
    if found is not None:
        text, place = found
        source = parse_shard_key(suspects[text])[0].name
        has_left = (
            ", which left the corpus: drop them with --remove-vanished, or" if source in changes.vanished else ";"
        )
        raise UserError(
            f"the id {text!r} (column {column!r}) is in {place}, and among the rows that the index keeps of "
            f"{source}{has_left} make ids unique"
        )


def _record_id(example_id: str, chunk: bool) -> str:
    """The id of the record that an example is, or is a block of."""
    return example_id.rpartition("/")[0] if chunk else example_id
