"""The plan of an update, made before anything is written by comparing the corpus with the newest generation."""

import json
from collections.abc import Iterator, Set
from dataclasses import dataclass, replace

from lorif_core.config import Config, UpdateConfig
from lorif_core.corpus.id_hashes import IdHashes, hash_id
from lorif_core.corpus.record_ids import find_id
from lorif_core.corpus.shards import ListFiles, Listing, check_first_file
from lorif_core.curvature.woodbury import CurvatureSpec
from lorif_core.errors import UserError
from lorif_core.lifecycle.index_shard import Tokenising
from lorif_core.lifecycle.manifest import Changes, compare, known_files
from lorif_core.lifecycle.moved_files import find_not_moved
from lorif_core.lifecycle.plan import BuildPlan, check_curvature, covered, curvature_spec, list_corpus, make_spec
from lorif_core.lifecycle.prefix import restrict_to_prefix
from lorif_core.lifecycle.tracking import tracked_layers
from lorif_core.model.limits import embedding_rows
from lorif_core.model.loading import load_skeleton
from lorif_core.spec import IndexSpec, ShardRef, parse_shard_key
from lorif_core.tables.generation import Generation, Part
from lorif_core.tables.inventory import Inventory
from lorif_core.tables.store import Store


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """A checked update.

    Attributes:
        base: the generation that it starts from; rows that were added to the tables later were never published.
        base_inventory: inventory of that generation.
        listing: listing of the corpus; it has all shards if rows of older checkpoints are sampled or recomputed.
        changes: differences of the corpus, and rows of older specs that are recomputed.
        removals_pending: a removal was recorded that is not applied to the base yet.
        build: the shards to index, and those that stay.
        remove_vanished: whether rows of files that left the corpus are removed.
        followers: older specs whose rows are scored at the newest checkpoint from now on.
        quarantined: (place, cause) of quarantined input of the base, in files that the update does not read.
    """

    base: Generation
    base_inventory: Inventory
    listing: Listing
    changes: Changes
    removals_pending: bool
    build: BuildPlan
    remove_vanished: bool
    followers: frozenset[str] = frozenset()
    quarantined: tuple[tuple[str, str], ...] = ()

    def is_needed(self, config: Config) -> bool:
        """Whether the corpus, the removals, the settings or the checkpoint have changed."""
        part = self.part
        return (
            not self.changes.is_empty
            or self.removals_pending
            or (config.update.curvature == "refit" and part is not None and _is_outdated(self.base, part))
            or bool(self.build.damaged)
            or (config.update.policy != "append" and (self.has_new_checkpoint or not self._is_newest))
            or (
                part is not None
                and (part.curvature_spec, part.factored_query) != (self.build.curvature, config.query.factored)
            )
        )

    @property
    def part(self) -> Part | None:
        """The part of the base that new rows belong to; None if it has no part of their spec."""
        return next((part for part in self.base.parts if part.spec == self.build.spec.hash), None)

    @property
    def has_new_checkpoint(self) -> bool:
        """Whether nothing is known of the gradients of the rows of the base at this checkpoint.

        The base has no part of it, only one for the rows that a training recorded on its way there, or one whose
        rows follow another checkpoint.
        """
        return _is_new(self.base, self.part)

    @property
    def _is_newest(self) -> bool:
        return self.base.newest.spec == self.build.spec.hash

    def older_shards(self, specs: Set[str] | None = None) -> tuple[ShardRef, ...]:
        """Listed shards whose rows stay at other checkpoints: of all of them, or only of some specs."""
        selected = {spec for spec, _ in self.build.retained} - {self.build.spec.hash} if specs is None else specs
        keys = {shard for spec, shard in self.build.retained if spec in selected}
        return tuple(shard for shard in self.listing.shards if shard.key in keys)

    @property
    def older_rows(self) -> int:
        """Number of rows that stay at other checkpoints."""
        retained, spec = self.build.retained, self.build.spec.hash
        entries = self.base_inventory.entries
        return sum(entry.rows for entry in entries if entry.key in retained and entry.spec != spec)

    def with_decisions(self, followers: Set[str], refreshed: Set[str]) -> "UpdatePlan":
        """The plan with decisions on older specs.

        Args:
            followers: specs whose rows are scored at the new checkpoint.
            refreshed: specs whose rows are recomputed.
        """
        changes = compare(self.base_inventory, self.listing, self.remove_vanished, refreshed)
        build = replace(self.build, shards=changes.shards, retained=changes.retained)
        return replace(self, changes=changes, build=build, followers=frozenset(followers))


def preflight_update(config: Config) -> Generation:
    """Check everything that does not need a pass over the corpus; returns the generation to update.

    Raises:
        UserError: as `make_update_plan`.
    """
    store = Store(config.index, config.storage)
    base = store.latest()
    spec = make_spec(config, load_skeleton(config.model, config.storage))
    store.check_spec(spec, same_checkpoint=False)
    check_first_file(config.corpus, config.storage)
    return base


def make_update_plan(
    config: Config, remove_vanished: bool = False, name_prefix: str = "", on_workers: ListFiles | None = None
) -> UpdatePlan:
    """Compare the corpus with the newest generation.

    Files that have not changed since the generation are not read, and files whose names do not begin with
    `name_prefix` count as unchanged. If rows of an older checkpoint are sampled or recomputed, the whole corpus is
    read.

    Raises:
        UserError: there is no generation to update, its spec differs in more than the checkpoint, or
            as `make_plan`.
    """
    store = Store(config.index, config.storage)
    base = store.latest()
    skeleton = load_skeleton(config.model, config.storage)
    spec = make_spec(config, skeleton)
    store.check_spec(spec, same_checkpoint=False)
    inventory = store.rows.inventory(base.factors_version)
    older = {part.spec for part in base.parts} - {spec.hash}
    refreshed = older if config.update.policy == "refresh" else set()
    quarantined = [(place, cause) for place, cause in json.loads(base.quarantined_json)]
    known = known_files(inventory, [place for place, _ in quarantined])
    if _reads_older_rows(config, base, spec):
        known, name_prefix = set(), ""
    listing = list_corpus(config, known, name_prefix, on_workers)
    tokenising = Tokenising(skeleton.tokenizer, embedding_rows(skeleton.model))
    not_moved = find_not_moved(config, listing, inventory, store, tokenising)
    listing = restrict_to_prefix(replace(listing, not_moved=not_moved), inventory, name_prefix)
    changes = compare(inventory, listing, remove_vanished, refreshed)
    _check_ids(config, store, inventory, listing, changes)
    staying = inventory.rows - changes.dropped_rows - changes.refreshed_rows
    check_curvature(config, spec.layers, staying + sum(shard.rows for shard in changes.shards))
    tracked = tracked_layers(config, skeleton)
    build = BuildPlan(
        spec=spec,
        shards=changes.shards,
        choice=tracked.choice.reason,
        coverage=covered(tracked, skeleton),
        curvature=curvature_spec(config),
        damaged=listing.damaged,
        notes=listing.notes,
        retained=changes.retained,
        base_version=base.factors_version,
    )
    return UpdatePlan(
        base=base,
        base_inventory=inventory,
        listing=replace(listing, ids=None),
        changes=changes,
        removals_pending=store.rows.removed().num_rows != base.removals,
        build=build,
        remove_vanished=remove_vanished,
        quarantined=tuple((place, cause) for place, cause in quarantined if not place.startswith(name_prefix)),
    )


def _reads_older_rows(config: Config, base: Generation, spec: IndexSpec) -> bool:
    """Whether rows of older checkpoints are sampled or recomputed."""
    part = next((part for part in base.parts if part.spec == spec.hash), None)
    if part is None or _is_new(base, part) or (config.update.policy == "refresh" and len(base.parts) > 1):
        return True
    return part.sampled > 0 and refit_reason(config.update, part, curvature_spec(config), 0, 0) is not None


def _is_new(base: Generation, part: Part | None) -> bool:
    """Whether the checkpoint of a part of the base is new to its rows (`UpdatePlan.has_new_checkpoint`)."""
    return part is None or part.follows is not None or _is_recorded(base, part)


def _is_recorded(base: Generation, part: Part) -> bool:
    """Whether a generation was recorded during a training, which ended at the checkpoint of this part."""
    return base.is_unmeasured and not part.rows


def _is_outdated(base: Generation, part: Part) -> bool:
    """Whether the curvature of a part was not fitted to its rows, though they stay as they are."""
    # a repair cannot fit a curvature again that has a sample of older rows
    is_unrepaired = base.changes.get("command") == "verify" and part.sampled > 0
    return part.curvature_kind != "none" and (part.left > 0 or is_unrepaired)


def refit_reason(
    options: UpdateConfig, part: Part | None, settings: CurvatureSpec, left: int, rows_before: int
) -> str | None:
    """Why a curvature must be fitted over all rows instead of being merged with the old one; None if it need not.

    Args:
        options: the `update` section.
        part: the part with the old curvature; None if there is none of this spec.
        settings: settings of the new curvature.
        left: number of rows that are removed from the part.
        rows_before: number of rows of the part before the change.
    """
    if part is None:
        return "there is none of this spec yet"
    if part.follows is not None:
        return "it is that of another checkpoint"
    if part.curvature_spec != settings:
        return "its settings have changed"
    if options.curvature == "refit":
        return "update.curvature is refit"
    share = (part.left + left) / max(rows_before + part.left, 1)
    if share > options.refit_share and not part.sampled:  # a refit would have to run the sample again
        return f"{share:.1%} of the rows have left since the last fit, above update.refit_share"
    return None


def _check_ids(config: Config, store: Store, inventory: Inventory, listing: Listing, changes: Changes) -> None:
    """Raise UserError if a file that was read has an id of a row that stays.

    Ids are compared by hash first. The texts are compared only for equal hashes.
    """
    column, new = config.corpus.id, listing.ids
    if column is None or not new:
        return
    reread = {shard.file for shard in listing.shards}
    staying = [entry for entry in inventory.entries if entry.key in changes.retained]
    others = {entry.shard for entry in staying if parse_shard_key(entry.shard)[0] not in reread}
    fragments = sorted({entry.fragment for entry in staying})

    def stored_ids() -> Iterator[tuple[str, str]]:
        """(id of the record, shard) of the rows that stay and are not read."""
        for batch in store.rows.metadata(inventory.version, ["example_id", "shard"], fragments):
            ids, shards = batch.column("example_id").to_pylist(), batch.column("shard").to_pylist()
            for text, shard in zip(ids, shards, strict=True):
                if shard in others:
                    yield _record_id(text, config.corpus.chunk), shard

    stored = IdHashes()
    stored.add((text for text, _ in stored_ids()), among=new)
    common = stored.common(new)
    suspects = {text: shard for text, shard in stored_ids() if hash_id(text) in common} if common else {}
    if not suspects:
        return
    duplicate = find_id(config.corpus, config.storage, {file.name for file in reread}, suspects.keys())
    if duplicate is not None:
        text, place = duplicate
        source = parse_shard_key(suspects[text])[0].name
        advice = (
            ", which left the corpus: remove them with --remove-vanished, or"
            if source in changes.vanished
            else ";"
        )
        raise UserError(
            f"the id {text!r} (column {column!r}) is in {place}, and also in the rows that the index retains of "
            f"{source}{advice} make ids unique"
        )


def _record_id(example_id: str, chunk: bool) -> str:
    """The id of an example's record; with `chunk`, an example is one block of a record."""
    return example_id.rpartition("/")[0] if chunk else example_id
