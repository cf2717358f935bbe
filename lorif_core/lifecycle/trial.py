"""A trial of a build on a sample, as `lorif check` runs it: speed and memory of each step; it writes nothing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from lorif_core.config import Config
from lorif_core.corpus.batches import Batch, collate, token_budget_batches
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.free_memory import peak_memory, reset_peak, resident_memory
from lorif_core.gradients.extract import Calibrator, Extractor
from lorif_core.gradients.footprint import BatchShape
from lorif_core.gradients.roots import exact_roots
from lorif_core.lifecycle.calibrate import CALIBRATION_TOKENS
from lorif_core.lifecycle.index_shard import load_for, read_examples, token_budget
from lorif_core.lifecycle.optimizer_scales import scales_of
from lorif_core.spec import IndexSpec, ShardRef
from lorif_core.tables.store import Store

_SECONDS = 8.0  # of each step


@dataclass(frozen=True, slots=True)
class Step:
    """What a step of the trial took.

    Attributes:
        tokens: tokens that it ran.
        seconds: time for them.
        peak: bytes of the process at the peak, or of the GPU if it has the model; None if the system does not say.
    """

    tokens: int
    seconds: float
    peak: int | None


@dataclass(frozen=True, slots=True)
class Trial:
    """What a sample says about a build.

    Attributes:
        tokens_per_record: tokens of an average record.
        examples_per_record: examples of an average record.
        largest: the largest batch that was run, with its padding.
        process: bytes of the process before it loaded the model; None if the system does not say, zero on a GPU.
        calibration: None if nothing has to be calibrated.
        root_seconds: time of the eigendecompositions of all layers.
        indexing: passes and codes.
    """

    tokens_per_record: float
    examples_per_record: float
    largest: BatchShape
    process: int | None
    calibration: Step | None
    root_seconds: float
    indexing: Step


def run_trial(config: Config, spec: IndexSpec, shard: ShardRef) -> Trial:
    """Load the model, tokenise a shard, and run batches of it for some seconds a step.

    Raises:
        UserError: a layer cannot be captured, or no token of the shard is scored.
    """
    gauge = Gauge()
    loaded = load_for(spec, config)
    gauge.device = loaded.device
    examples = list(read_examples(shard, config, loaded))
    # under `auto` a build finds the size while it runs, which takes longer than a trial
    batches = _batches(examples, token_budget(config, loaded, CALIBRATION_TOKENS).tokens)
    if not batches:
        raise UserError(f"no token of the first shard {shard.key} would be scored; check the corpus columns")
    roots = Store(config.index, config.storage).whitenings.roots(spec.projection.whitening)
    scales = scales_of(config, spec, loaded.model)
    calibration, root_seconds = None, 0.0
    if spec.projection.is_whitened and roots is None:
        calibrator = Calibrator(loaded, spec.layers, spec.projection, scales)
        calibrator.check()
        calibration = gauge.step(batches, calibrator.add)
        started = time.perf_counter()
        roots = exact_roots(calibrator.covariances)
        root_seconds = time.perf_counter() - started
    extractor = Extractor(loaded, spec.layers, spec.projection, spec.code, roots, scales)
    if calibration is None:
        extractor.check()
    return Trial(
        sum(len(example.input_ids) for example in examples) / shard.rows,
        len(examples) / shard.rows,
        BatchShape(*batches[0].input_ids.shape),
        0 if loaded.device.type == "cuda" else gauge.process,
        calibration,
        root_seconds,
        gauge.step(batches, extractor.extract),
    )


def _batches(examples: Sequence[Example], budget: int) -> list[Batch]:
    scored = [example for example in examples if example.scored and example.fault is None]
    lengths = [len(example.input_ids) for example in scored]
    return [collate(scored, indices) for indices in token_budget_batches(lengths, budget)]


class Gauge:
    """Measures time and memory of steps, whose first batch is the largest."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.process = resident_memory()

    def step(self, batches: Sequence[Batch], run: Callable[[Batch], object]) -> Step:
        """Run batches until some seconds have passed, not counting a quick first one, which allocates."""
        self._begin()
        tokens, started = 0, time.perf_counter()
        for number, batch in enumerate([batches[0], *batches]):
            run(batch)
            tokens += int(batch.lengths.sum())
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds = time.perf_counter() - started
            if seconds > _SECONDS:
                break
            if number == 0:
                tokens, started = 0, time.perf_counter()
        return Step(tokens, seconds, self._peak())

    def _begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            reset_peak()

    def _peak(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_memory()
