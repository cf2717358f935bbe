"""What an update will do, worked out before anything is written: the corpus against the newest generation."""

import json
from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np

from lorif_core.config import Config, UpdateConfig
from lorif_core.corpus.shards import Listing, check_first_file, find_id, list_shards
from lorif_core.curvature.woodbury import CurvatureSpec
from lorif_core.errors import UserError
from lorif_core.lifecycle.manifest import Changes, compare, known_files
from lorif_core.lifecycle.plan import BuildPlan, check_curvature, curvature_spec, make_spec
from lorif_core.lifecycle.prefix import unchanged_outside
from lorif_core.model.layers import coverage, select_layers
from lorif_core.model.loading import load_skeleton
from lorif_core.spec import IndexSpec, ShardRef, parse_shard_key
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """A checked update.

    Attributes:
        base: the generation that it starts from; what came into the tables after it was never published.
        held: inventory of that generation.
        listing: of the corpus; with all its shards where rows of older checkpoints are looked at.
        changes: what the corpus has otherwise, and rows of older specs that are computed anew.
        removals_pending: a removal was begun that the base does not honour yet.
        build: the shards to index, and those that stay.
        remove_vanished: rows of files that left the corpus go.
        followers: older specs whose rows are asked at the newest checkpoint from now on.
        quarantined: (place, cause) of what the base is without, in files that are not looked at.
    """

    base: Generation
    held: Inventory
    listing: Listing
    changes: Changes
    removals_pending: bool
    build: BuildPlan
    remove_vanished: bool
    followers: frozenset[str] = frozenset()
    quarantined: tuple[tuple[str, str], ...] = ()

    def is_needed(self, config: Config) -> bool:
        """Whether there is anything to do: in the corpus, or because settings or the checkpoint have changed."""
        part = self.part
        return (
            not self.changes.are_none
            or self.removals_pending
            or bool(self.build.damaged)
            or (part is None and config.update.policy != "append")
            or (
                part is not None
                and (part.curvature_spec, part.factored_query) != (self.build.curvature, config.query.factored)
            )
        )

    @property
    def part(self) -> Part | None:
        """The part of the base that new rows belong to."""
        return next((part for part in self.base.parts if part.spec == self.build.spec.hash), None)

    def older(self, specs: Set[str] | None = None) -> tuple[ShardRef, ...]:
        """Shards that are listed and whose rows stay at other checkpoints; all, or those of some specs."""
        chosen = {spec for spec, _ in self.build.kept} - {self.build.spec.hash} if specs is None else specs
        keys = {shard for spec, shard in self.build.kept if spec in chosen}
        return tuple(shard for shard in self.listing.shards if shard.key in keys)

    @property
    def older_rows(self) -> int:
        """Rows that stay at other checkpoints."""
        kept, spec = self.build.kept, self.build.spec.hash
        return sum(held.rows for held in self.held.holdings if held.key in kept and held.spec != spec)

    def judged(self, followers: Set[str], refreshed: Set[str]) -> "UpdatePlan":
        """The same with rows of some older specs computed anew, those of others asked at the new checkpoint."""
        changes = compare(self.held, self.listing, self.remove_vanished, refreshed)
        build = replace(self.build, shards=changes.shards, kept=changes.kept)
        return replace(self, changes=changes, build=build, followers=frozenset(followers))


def preflight_update(config: Config) -> Generation:
    """The checks that cost no pass over the corpus; the generation that would be updated.

    Raises:
        UserError: as `make_update_plan`.
    """
    store = Store(config.index, config.storage)
    base = store.latest()
    spec = make_spec(config, load_skeleton(config.model, config.storage))
    store.check_spec(spec, same_checkpoint=False)
    check_first_file(config.corpus, config.storage)
    return base


def make_update_plan(config: Config, remove_vanished: bool = False, within: str = "") -> UpdatePlan:
    """Compare the corpus with the newest generation.

    Files that it holds as they are now are not read, unless rows of an older checkpoint are looked at anew. Files
    whose names do not begin with `within` are taken to be as the generation has them; where rows of an older
    checkpoint are looked at, the whole corpus is.

    Raises:
        UserError: there is no generation to update, it is of another spec than that of another checkpoint, or as
            `make_plan`.
    """
    store = Store(config.index, config.storage)
    base = store.latest()
    skeleton = load_skeleton(config.model, config.storage)
    spec = make_spec(config, skeleton)
    store.check_spec(spec, same_checkpoint=False)
    held = store.rows.inventory(base.factors_version)
    older = {part.spec for part in base.parts} - {spec.hash}
    refreshed = older if config.update.policy == "refresh" else set()
    quarantined = [(place, cause) for place, cause in json.loads(base.quarantined_json)]
    known = known_files(held, [place for place, _ in quarantined])
    if _looks_at_older(config, base, spec):
        known, within = set(), ""
    listing = unchanged_outside(list_shards(config.corpus, config.storage, known, within), held, within)
    changes = compare(held, listing, remove_vanished, refreshed)
    _check_ids(config, store, held, listing, changes)
    staying = held.rows - changes.dropped_rows - changes.refreshed_rows
    check_curvature(config, spec.layers, staying + sum(shard.rows for shard in changes.shards))
    build = BuildPlan(
        spec=spec,
        shards=changes.shards,
        coverage=coverage(skeleton.model, select_layers(skeleton.model, config.model.layers)),
        curvature=curvature_spec(config),
        damaged=listing.damaged,
        kept=changes.kept,
        base_version=base.factors_version,
    )
    return UpdatePlan(
        base=base,
        held=held,
        listing=listing,
        changes=changes,
        removals_pending=store.rows.removed().num_rows != base.removals,
        build=build,
        remove_vanished=remove_vanished,
        quarantined=tuple((place, cause) for place, cause in quarantined if not place.startswith(within)),
    )


def _looks_at_older(config: Config, base: Generation, spec: IndexSpec) -> bool:
    """Whether rows of older checkpoints are sampled or computed anew."""
    part = next((part for part in base.parts if part.spec == spec.hash), None)
    if part is None or (config.update.policy == "refresh" and len(base.parts) > 1):
        return True
    return part.sampled > 0 and why_refit(config.update, part, curvature_spec(config), 0, 0) is not None


def why_refit(
    wishes: UpdateConfig, part: Part | None, settings: CurvatureSpec, left: int, held: int
) -> str | None:
    """Why a curvature cannot be merged with what is there, or None.

    Args:
        wishes: the `update` section.
        part: what is there.
        settings: of the fit that is wanted.
        left: rows that leave.
        held: rows that there were.
    """
    if part is None:
        return "there is none of this spec yet"
    if part.curvature_spec != settings:
        return "its settings have changed"
    if wishes.curvature == "refit":
        return "update.curvature is refit"
    share = (part.left + left) / max(held + part.left, 1)
    if share > wishes.refit_share and not part.sampled:  # what was sampled cannot be had again for nothing
        return f"{share:.1%} of the rows have left since the last fit, above update.refit_share"
    return None


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
    for batch in store.rows.metadata(held.version, ["example_id", "shard"], fragments):
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
