"""Publishing a recording: rows of the journal become shards, which are committed in waves, and a generation.

It may run again after it was killed, in any process: shards that are committed stay, and the journal is emptied
last. All rows are a part of their own, which follows a part of the trained model that has no rows yet.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from typing import Any

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.lifecycle.curvature_fit import Fit, fit_id
from lorif_core.lifecycle.index_shard import Tokenising, read_examples
from lorif_core.lifecycle.indexing import FailedShard, IndexedRows, index_missing
from lorif_core.lifecycle.plan import BuildPlan, covered, curvature_spec, list_corpus, make_spec
from lorif_core.lifecycle.publishing import new_part, publish_rows
from lorif_core.lifecycle.removal import Removals, read_removals
from lorif_core.lifecycle.tracking import tracked_layers
from lorif_core.lifecycle.waves import Waves
from lorif_core.model.limits import embedding_rows
from lorif_core.model.loading import Skeleton, load_skeleton
from lorif_core.recording.journal import Journal, Recording, require_open
from lorif_core.recording.recorded_examples import NOT_RECORDED, reason_against, with_recorded_corpus
from lorif_core.recording.sightings import (
    Place,
    Sighting,
    Sightings,
    grouped,
    one_of_each,
    read_codes,
    read_sightings,
)
from lorif_core.recording.training_batch import content_key
from lorif_core.spec import IndexSpec, LayerSpec, ShardRef
from lorif_core.storage.lease import Lease, hold_lease
from lorif_core.tables.generation import Generation
from lorif_core.tables.inventory import ShardKey
from lorif_core.tables.receipts import Receipt, Receipts
from lorif_core.tables.schema import ShardRows
from lorif_core.tables.store import Store
from lorif_core.tables.whitenings import WhiteningHeader

log = logging.getLogger(__name__)

COMMAND = "record"


@dataclass(frozen=True, slots=True)
class _Shard:
    """A shard of the corpus, and the sightings of each of its examples."""

    ref: ShardRef
    sightings: list[list[Sighting]]


def publish_recording(index: str, checkpoint: str, storage: Mapping[str, Any] | None = None) -> Generation:
    """Publish the unfinished recording of an index.

    Args:
        index: folder or URI of the index.
        checkpoint: where the trained model was saved.
        storage: the section `storage` of CONFIG.

    Raises:
        LorifError: there is no recording, none of its examples is in the corpus, or as a build.
    """
    raw = {"index": index, "model": {"path": checkpoint}, "corpus": {"uri": "."}, "storage": dict(storage or {})}
    own = parse_config(raw, "publish_recording")
    journal = Journal(own.index, own.storage)
    with hold_lease(own.index, own.storage, COMMAND) as lease:
        recording = require_open(journal.current(), own.index)
        kept = dict(recording.config)
        kept["model"] = {**kept["model"], "path": checkpoint}
        config = parse_config({**kept, "index": index, "storage": raw["storage"]}, "the recording")
        return _Publication(config, journal, recording, lease).run()


class _Publication:
    """The steps of publishing.

    Args:
        config: CONFIG with the checkpoint of the trained model.
        journal: the journal.
        recording: what it has.
        lease: lease of the index, held by this process.
    """

    def __init__(self, config: Config, journal: Journal, recording: Recording, lease: Lease) -> None:
        self._journal, self._recording, self._lease = journal, recording, lease
        self._store = Store(config.index, config.storage)
        self._config = config

    def run(self) -> Generation:
        """Publish, and empty the journal."""
        whitening = self._journal.whitening(self._recording)
        if whitening is None:
            raise UserError(
                f"the recording of {self._store.uri} has no rows yet, because training ended "
                f"before enough examples were seen for the metric; lower projection.calibration_examples, or "
                f"run lorif build"
            )
        sightings = read_sightings(self._journal, self._recording)
        self._config = with_recorded_corpus(self._config, self._journal, self._recording, sightings)
        skeleton = load_skeleton(self._config.model, self._config.storage)
        final = self._final_spec(skeleton)
        rows_spec = replace(final, checkpoint=self._recording.checkpoint).with_whitening(whitening.name)
        self._store_whitening(rows_spec)
        final = self._newest_metric(final)
        shards = self._shards(skeleton, sightings)
        plan = self._plan(rows_spec, skeleton, [shard.ref for shard in shards])
        indexed = self._index(plan, skeleton, shards, sightings)
        generation = self._publish(plan, final, skeleton, indexed, sightings)
        self._journal.put(replace(self._recording, generation=generation.generation))
        self._journal.empty(self._recording)
        return generation

    def _final_spec(self, skeleton: Skeleton) -> IndexSpec:
        """The spec of rows at the trained model. Raises UserError if other layers were recorded."""
        spec = make_spec(self._config, skeleton)
        recorded = tuple(LayerSpec(**layer) for layer in self._recording.layers)
        if spec.layers != recorded:
            raise UserError(
                f"the checkpoint {self._config.model.path} has other tracked layers than the training recorded "
                f"({len(spec.layers)} against {len(recorded)}); name the checkpoint that the training saved"
            )
        return spec.with_whitening(None)

    def _store_whitening(self, spec: IndexSpec) -> None:
        """Store the whitening of the rows as it was used."""
        whitening, table = self._journal.whitening(self._recording), self._store.whitenings
        assert whitening is not None
        self._lease.confirm()
        self._store.create(spec)
        table.create()
        if whitening.name not in table.specs():
            header = WhiteningHeader(whitening.name, spec.hash, whitening.tokens, whitening.examples)
            table.commit(whitening.name, table.write(header, whitening.sides, spec.layers))

    def _newest_metric(self, final: IndexSpec) -> IndexSpec:
        """The spec of the trained model with the newest covariances as its whitening."""
        whitening = self._journal.whitening(self._recording)
        assert whitening is not None
        sums = whitening.covariances
        sums.add(self._journal.moments(self._recording))
        self._lease.confirm()
        return final.with_whitening(self._store.whitenings.add(sums, final.layers, final))

    def _read(self, ref: ShardRef, skeleton: Skeleton) -> Iterator[Example]:
        """The examples of a shard, which are read twice, so that those of one shard are in memory."""
        tokenising = Tokenising(skeleton.tokenizer, embedding_rows(skeleton.model))
        return read_examples(ref, self._config, tokenising)

    def _shards(self, skeleton: Skeleton, sightings: Sightings) -> list[_Shard]:
        """The shards of the corpus of which some example was recorded."""
        only_last, found, seen = self._recording.sightings == "last", list[_Shard](), 0
        for ref in list_corpus(self._config).shards:
            of_examples = [
                sightings.of(content_key(example.input_ids, example.labels), only_last=only_last)
                for example in self._read(ref, skeleton)
            ]
            if any(of_examples):
                found.append(_Shard(ref, of_examples))
            seen += sum(map(bool, of_examples))
        if not seen:
            raise UserError(
                f"none of the {len(sightings.by_key):,} examples that training saw has the tokens and labels that "
                f"CONFIG gives of {self._config.corpus.uri}; check its columns and corpus.max_length"
            )
        if seen < len(sightings.by_key):
            log.warning(
                "%d of %d examples that training saw are not in the corpus %s as CONFIG tokenises it",
                len(sightings.by_key) - seen, len(sightings.by_key), self._config.corpus.uri,
            )  # fmt: skip
        return found

    def _plan(self, spec: IndexSpec, skeleton: Skeleton, refs: Sequence[ShardRef]) -> BuildPlan:
        """The rows to store, and those of earlier generations that stay because no shard replaces them."""
        generations, recorded = self._store.generations(), {ref.key for ref in refs}
        retained, base = frozenset[ShardKey](), None
        if generations:
            base = generations[-1].factors_version
            entries = self._store.rows.inventory(base).entries
            retained = frozenset(entry.key for entry in entries if entry.shard not in recorded)
        tracked = tracked_layers(self._config, skeleton)
        return BuildPlan(
            spec=spec, shards=tuple(refs), choice=tracked.choice.reason, coverage=covered(tracked, skeleton),
            curvature=curvature_spec(self._config), retained=retained, base_version=base,
        )  # fmt: skip

    def _index(
        self, plan: BuildPlan, skeleton: Skeleton, shards: Sequence[_Shard], sightings: Sightings
    ) -> IndexedRows:
        budget = int(self._config.compute.memory_gb * 2**30 / 2)
        by_key = {shard.ref.key: shard for shard in shards}
        removals = read_removals(self._store, plan.spec)
        receipts = Receipts(self._store.uri, self._store.storage)

        def index_shards(pending: Sequence[ShardRef], waves: Waves) -> list[FailedShard]:
            chosen = [by_key[ref.key] for ref in pending]
            sizes = [sum(map(len, shard.sightings)) * plan.layout.bytes_per_example for shard in chosen]
            for group in grouped(sizes, budget):
                places = {
                    sighting.place
                    for number in group
                    for of_example in chosen[number].sightings
                    for sighting in of_example
                }
                rows = read_codes(self._journal, self._recording, sightings.pieces, sorted(places))
                for number in group:
                    examples = list(self._read(chosen[number].ref, skeleton))
                    receipt = self._store_shard(chosen[number], examples, rows, plan, removals)
                    receipts.write(receipt, plan.spec.hash)
                    self._join(waves, waves.add(receipt), receipts, plan.spec.hash)
            self._join(waves, waves.rest(), receipts, plan.spec.hash)
            waves.commit()
            return []

        return index_missing(self._config, plan, self._lease, False, index_shards, log)

    def _store_shard(
        self,
        shard: _Shard,
        examples: Sequence[Example],
        rows: Mapping[Place, Any],
        plan: BuildPlan,
        removals: Removals,
    ) -> Receipt:
        """Write the rows of a shard, and why other examples of it have none."""
        stored, skipped = list[int](), list[tuple[str, str]]()
        for number, (example, seen) in enumerate(zip(examples, shard.sightings, strict=True)):
            reason = reason_against(example, seen, removals)
            if reason is None:
                stored.append(number)
            else:
                skipped.append((example.example_id, reason))
        parts = []
        if stored:
            groups = [[rows[sighting.place] for sighting in shard.sightings[number]] for number in stored]
            codes = one_of_each(groups, plan.layout, unbiased=plan.spec.projection.is_whitened)
            steps = [shard.sightings[number][-1].step for number in stored]
            checkpoints = [self._recording.row_checkpoint(step) for step in steps]
            chosen = [examples[number] for number in stored]
            parts.append(ShardRows(chosen, codes.losses, codes.codes, codes.scales, checkpoints))
        fragments = self._store.rows.write(iter(parts), shard.ref, plan.spec)
        tokens = sum(len(examples[number].input_ids) for number in stored)
        return Receipt(shard.ref.key, tuple(fragments), len(stored), tokens, tokens, tuple(skipped), 0.0)

    def _join(self, waves: Waves, group: tuple[Receipt, ...], receipts: Receipts, spec: str) -> None:
        if group:
            joined = self._store.rows.join(group)
            receipts.write(joined, spec)
            waves.add_joined(group, joined)

    def _publish(
        self, plan: BuildPlan, final: IndexSpec, skeleton: Skeleton, indexed: IndexedRows, sightings: Sightings
    ) -> Generation:
        settings = curvature_spec(self._config)
        curvature = fit_id(final.hash, indexed.version, asdict(settings))
        fit = Fit(curvature, self._store.curvatures.version(), "none", 0, 0.0)
        newest = new_part(self._config, replace(plan, spec=final), fit)
        recorded = replace(newest, spec_json=plan.spec.to_json(), checkpoint=plan.spec.checkpoint)
        generations = self._store.generations()
        others = [] if not generations else list(generations[-1].parts)
        own: Set[str] = {newest.spec, recorded.spec}
        missing = sum(reason == NOT_RECORDED for _, reason in indexed.skipped)
        changes = {
            "command": COMMAND,
            "recorded": {
                "run": self._recording.run, "steps": [sightings.first_step, sightings.last_step],
                "sightings": self._recording.sightings, "rows_recorded": sightings.rows, "missing": missing,
            },
        }  # fmt: skip
        if missing:
            log.warning(
                "%d examples of the corpus have no row, because training showed them before the "
                "metric was there, or never; lorif update CONFIG update.policy=refresh computes all rows at the "
                "trained model", missing,
            )  # fmt: skip
        parts = [*(part for part in others if part.spec not in own), recorded.following(newest), newest]
        return publish_rows(self._config, plan, parts, indexed, fit, self._lease, {}, changes)
