"""Publishing a recording: rows of the journal become shards, which are committed in waves, and a generation.

It may run again after it was killed, in any process: shards that are committed stay, and the journal is emptied
last. All rows are a part of their own, which follows a part of the trained model that has no rows yet.
"""

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, replace
from typing import Any

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.curvature_fit import Fit, fit_id
from lorif_core.lifecycle.index_shard import Tokenising
from lorif_core.lifecycle.indexing import FailedShard, IndexedRows, index_missing
from lorif_core.lifecycle.plan import BuildPlan, covered, curvature_spec, list_corpus, make_spec, projection_spec
from lorif_core.lifecycle.publishing import new_part, publish_rows
from lorif_core.lifecycle.removal import read_removals
from lorif_core.lifecycle.tracking import tracked_layers
from lorif_core.lifecycle.waves import Waves
from lorif_core.model.limits import embedding_rows
from lorif_core.model.loading import Skeleton, load_skeleton
from lorif_core.recording.combined_codes import JournalRow, combined
from lorif_core.recording.journal import BEFORE_METRIC, Journal, Recording, require_open
from lorif_core.recording.recorded_examples import NOT_RECORDED, with_longest, with_recorded_corpus
from lorif_core.recording.recorded_shards import CorpusReader, RecordedShard, SplitShard, in_order, split_shard
from lorif_core.recording.rows_afterwards import RowsAfterwards
from lorif_core.recording.settings import RecordingSettings
from lorif_core.recording.sightings import Place, Sightings, grouped, read_codes, read_sightings
from lorif_core.spec import CodeSpec, IndexSpec, LayerSpec, ShardRef
from lorif_core.storage.lease import Lease, hold_lease
from lorif_core.tables.generation import Generation
from lorif_core.tables.inventory import ShardKey
from lorif_core.tables.receipts import Receipt, Receipts
from lorif_core.tables.schema import ShardRows
from lorif_core.tables.store import Store
from lorif_core.tables.whitenings import WhiteningHeader

log = logging.getLogger(__name__)

COMMAND = "record"
_NAMED = 5  # examples without a row, in a message


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
        self._whitening, self._scales = journal.whitening(recording), journal.scales(recording)

    def run(self) -> Generation:
        """Publish, and empty the journal."""
        projection = projection_spec(self._config)
        if (projection.is_whitened and self._whitening is None) or (projection.is_adam and self._scales is None):
            raise UserError(
                f"the recording of {self._store.uri} has no rows yet, because training ended "
                f"before enough examples were seen for the metric; lower projection.calibration_examples, or "
                f"run lorif build"
            )
        sightings = read_sightings(self._journal, self._recording)
        self._config = with_recorded_corpus(self._config, self._journal, self._recording, sightings)
        self._config = with_longest(self._config, sightings)
        skeleton = load_skeleton(self._config.model, self._config.storage)
        final = self._final_spec(skeleton, sightings)
        name = None if self._whitening is None else self._whitening.name
        rows_spec = replace(final, checkpoint=self._recording.checkpoint).with_whitening(name)
        self._store_whitening(rows_spec)
        final = self._newest_metric(final)
        corpus = CorpusReader(self._config, Tokenising(skeleton.tokenizer, embedding_rows(skeleton.model)))
        shards = self._shards(corpus, sightings)
        plan = self._plan(rows_spec, skeleton, [shard.ref for shard in shards])
        indexed = self._index(plan, corpus, shards, sightings)
        generation = self._publish(plan, final, indexed, sightings)
        self._journal.put(replace(self._recording, generation=generation.generation))
        self._journal.empty(self._recording)
        return generation

    def _final_spec(self, skeleton: Skeleton, sightings: Sightings) -> IndexSpec:
        """The spec of rows at the trained model. Raises UserError if other layers were recorded."""
        spec = make_spec(self._config, skeleton)
        recorded = tuple(LayerSpec(**layer) for layer in self._recording.layers)
        if spec.layers != recorded:
            raise UserError(
                f"the checkpoint {self._config.model.path} has other tracked layers than the training recorded "
                f"({len(spec.layers)} against {len(recorded)}); name the checkpoint that the training saved"
            )
        name = None if self._scales is None else self._scales.scales.name
        spec = spec.with_whitening(None).with_scales(name)
        return replace(spec, code=self._stored_code(spec.code, sightings))

    def _stored_code(self, code: CodeSpec, sightings: Sightings) -> CodeSpec:
        """The code of the index: with `each` it has room for the terms of all rows of an example."""
        if self._recording.sightings != "each" or code.kind == "dense":
            return code
        stored, needed = self._store.newest_spec(), max(sightings.most, 1) * code.rank
        rank = needed if stored is None else stored.code.rank
        if rank < needed:
            log.warning(
                "codes of the index have %d terms, and examples up to %d: the mean of those is encoded again",
                rank, needed,
            )  # fmt: skip
        log.info("the codes have rank %d: an update needs code.rank: %d in CONFIG", rank, rank)
        return replace(code, rank=rank)

    def _store_whitening(self, spec: IndexSpec) -> None:
        """Store the scales and the whitening of the rows as they were used."""
        whitening, table = self._whitening, self._store.whitenings
        self._lease.confirm()
        if self._scales is not None:
            self._store.scales.add(self._scales.scales, spec.layers)
        self._store.create(spec)
        if whitening is None:
            return
        table.create()
        if whitening.name not in table.specs():
            header = WhiteningHeader(whitening.name, spec.hash, whitening.tokens, whitening.examples)
            table.commit(whitening.name, table.write(header, whitening.sides, spec.layers))

    def _newest_metric(self, final: IndexSpec) -> IndexSpec:
        """The spec of the trained model with the newest covariances as its whitening."""
        if self._whitening is None:
            return final
        sums = self._whitening.covariances
        sums.add(self._journal.moments(self._recording))
        self._lease.confirm()
        return final.with_whitening(self._store.whitenings.add(sums, final.layers, final))

    def _shards(self, corpus: CorpusReader, sightings: Sightings) -> list[RecordedShard]:
        """The shards of the corpus of which some example was seen in training."""
        only_last = self._recording.sightings == "last"
        found = corpus.recorded(list_corpus(self._config).shards, sightings, only_last=only_last)
        seen = sum(bool(rows) for shard in found for rows in shard.sightings)
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
        self, plan: BuildPlan, corpus: CorpusReader, shards: Sequence[RecordedShard], sightings: Sightings
    ) -> IndexedRows:
        budget = int(self._config.compute.memory_gb * 2**30 / 2)
        by_key = {shard.ref.key: shard for shard in shards}
        settings = RecordingSettings(self._config, sightings=self._recording.sightings)
        journal = CodeLayout(plan.spec.layers, settings.journal_code(plan.spec.layers))
        removals = read_removals(self._store, plan.spec)
        afterwards = RowsAfterwards(self._config, self._recording, plan.spec, sum(shard.early for shard in shards))
        receipts = Receipts(self._store.uri, self._store.storage)

        def index_shards(pending: Sequence[ShardRef], waves: Waves) -> list[FailedShard]:
            chosen = [by_key[ref.key] for ref in pending]
            sizes = [len(shard.places) * journal.bytes_per_example for shard in chosen]
            for group in grouped(sizes, budget):
                places = sorted(set[Place]().union(*(chosen[number].places for number in group)))
                rows = read_codes(self._journal, self._recording, sightings.pieces, places)
                for number in group:
                    split = split_shard(chosen[number], corpus, removals)
                    parts, skipped = afterwards.encode(split.early)
                    parts += self._recorded_rows(split, rows, journal, plan)
                    receipt = self._store_shard(chosen[number].ref, parts, [*split.skipped, *skipped], plan.spec)
                    receipts.write(receipt, plan.spec.hash)
                    waves.join_here(waves.add(receipt))
            waves.join_here(waves.rest())
            waves.commit()
            return []

        return index_missing(self._config, plan, self._lease, False, index_shards, log)

    def _recorded_rows(
        self, split: SplitShard, rows: Mapping[Place, JournalRow], journal: CodeLayout, plan: BuildPlan
    ) -> list[ShardRows]:
        """The rows of a shard that were recorded, if there are any."""
        if not split.recorded:
            return []
        groups = [[rows[sighting.place] for sighting in seen] for _, seen in split.recorded]
        codes = combined(groups, journal, plan.layout, unbiased=plan.spec.projection.has_metric)
        steps = [[sighting.step for sighting in seen] for _, seen in split.recorded]
        checkpoints = [self._recording.row_checkpoint(of_example) for of_example in steps]
        examples = [example for example, _ in split.recorded]
        return [ShardRows(examples, codes.losses, codes.codes, codes.scales, checkpoints)]

    def _store_shard(
        self, ref: ShardRef, parts: Sequence[ShardRows], skipped: Sequence[tuple[str, str]], spec: IndexSpec
    ) -> Receipt:
        """Write the rows of a shard, and why other examples of it have none."""
        rows = in_order(parts)
        fragments = self._store.rows.write(iter(rows), ref, spec)
        examples = [example for part in rows for example in part.examples]
        tokens = sum(len(example.input_ids) for example in examples)
        return Receipt(ref.key, tuple(fragments), len(examples), tokens, tokens, tuple(skipped), 0.0)

    def _publish(
        self, plan: BuildPlan, final: IndexSpec, indexed: IndexedRows, sightings: Sightings
    ) -> Generation:
        settings = curvature_spec(self._config)
        curvature = fit_id(final.hash, indexed.version, asdict(settings))
        fit = Fit(curvature, self._store.curvatures.version(), "none", 0, 0.0)
        newest = new_part(self._config, replace(plan, spec=final), fit)
        recorded = replace(newest, spec_json=plan.spec.to_json(), checkpoint=plan.spec.checkpoint)
        generations = self._store.generations()
        others = [] if not generations else list(generations[-1].parts)
        own: Set[str] = {newest.spec, recorded.spec}
        missing = [name for name, reason in indexed.skipped if reason in (NOT_RECORDED, BEFORE_METRIC)]
        changes = {
            "command": COMMAND,
            "recorded": {
                "run": self._recording.run, "steps": [sightings.first_step, sightings.last_step],
                "sightings": self._recording.sightings, "rows_recorded": sightings.rows, "missing": len(missing),
            },
        }  # fmt: skip
        if missing:
            log.warning(
                "%d examples of the corpus have no row (%s), because training did not show them while the metric "
                "was there; lorif update CONFIG update.policy=refresh computes all rows at the trained model",
                len(missing), ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else ""),
            )  # fmt: skip
        parts = [*(part for part in others if part.spec not in own), recorded.following(newest), newest]
        return publish_rows(self._config, plan, parts, indexed, fit, self._lease, {}, changes)
