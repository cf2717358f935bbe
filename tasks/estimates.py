"""What a build will take in bytes, memory and time, from its plan and from a sample that ran on a worker."""

from dataclasses import dataclass
from typing import Any

from lorif_core.config import Config
from lorif_core.corpus.file_listing import SHARD_ROWS
from lorif_core.gradients.footprint import BatchShape
from lorif_core.gradients.memory_gauge import GpuGauge, HostGauge
from lorif_core.lifecycle.calibrate import part_count, sample_size
from lorif_core.lifecycle.memory_plan import WORKER_PROCESS, plan_memory
from lorif_core.lifecycle.plan import BuildPlan
from lorif_core.lifecycle.trial import Step, Trial
from tasks.cluster import Resources


@dataclass(frozen=True, slots=True)
class Estimates:
    """The estimates of `lorif check`.

    Attributes:
        config: the config.
        plan: the plan of the build.
        skeleton: the model without weights.
        trial: the sample that ran.
        resources: the workers that would run the build.
    """

    config: Config
    plan: BuildPlan
    skeleton: Any
    trial: Trial
    resources: Resources

    def as_dict(self) -> dict[str, Any]:
        """The estimates and their base as plain values; sizes are bytes, times are seconds."""
        plan, layout = self.plan, self.plan.layout
        examples = round(self.trial.examples_per_record * plan.rows)
        indexing, seconds = self.trial.indexing, self.seconds()
        return {
            "records": plan.rows,
            "shards": len(plan.shards),
            "examples": examples,
            "tokens": round(self.trial.tokens_per_record * plan.rows),
            "layers": len(plan.spec.layers),
            "largest_side": max(max(layer.d1, layer.d2) for layer in plan.spec.layers),
            "coverage": plan.coverage.sentence(),
            "spec": plan.spec.hash,
            "bytes_per_example": layout.bytes_per_example,
            "dense_bytes_per_example": layout.dense_bytes_per_example(),
            "index_bytes": layout.bytes_per_example * examples,
            "workers": self.resources.workers,
            "gpus": self.resources.workers * self.resources.gpus_per_worker,
            "tokens_per_second": indexing.tokens / indexing.seconds,
            "memory": self.memory(),
            "seconds": seconds,
            "estimated_hours": sum(seconds.values()) / 3600,
        }

    def memory(self) -> dict[str, dict[str, int | None]]:
        """Bytes at the peak of each process, as estimated and as the sample had them; None where nobody knows."""
        trial, process = self.trial, self.trial.process
        plan = plan_memory(
            self.skeleton, self.plan.spec, self._largest_batch(), self.config.compute.memory_gb,
            WORKER_PROCESS if process is None else process,
        )  # fmt: skip
        measured = {"calibration": _peak(trial.calibration), "indexing": _peak(trial.indexing)}
        estimates = {
            "calibration": plan.calibration, "indexing": plan.indexing, "query": plan.query, "driver": plan.driver,
        }  # fmt: skip
        return {
            name: {"estimate": estimate, "measured": measured.get(name)} for name, estimate in estimates.items()
        }

    def _largest_batch(self) -> BatchShape:
        """The largest batch of the trial, or the one at which `auto` arrives if memory suffices."""
        ran = self.trial.largest
        if self.config.compute.tokens_per_batch != "auto":
            return ran
        gauge = GpuGauge if self.resources.gpus_per_worker else HostGauge
        return BatchShape(max(1, min(SHARD_ROWS, gauge.most_tokens // ran.tokens)), ran.tokens)

    def seconds(self) -> dict[str, float]:
        """Seconds of the calibration, of the eigendecompositions of every worker, and of the indexing."""
        trial, plan, workers = self.trial, self.plan, self.resources.workers
        calibration = 0.0
        if trial.calibration is not None:
            sample = sample_size(plan.spec.projection, plan.rows) * trial.tokens_per_record
            calibration = _time(sample, trial.calibration, min(workers, part_count(plan.shards)))
        indexing = _time(trial.tokens_per_record * plan.rows, trial.indexing, min(workers, len(plan.shards)))
        return {"calibration": calibration, "roots": trial.root_seconds, "indexing": indexing}


def _time(tokens: float, step: Step, workers: int) -> float:
    return tokens * step.seconds / step.tokens / max(workers, 1)


def _peak(step: Step | None) -> int | None:
    return None if step is None else step.peak
