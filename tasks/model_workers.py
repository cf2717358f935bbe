"""Workers that load the model once for all steps of a flow that run it: calibration, and indexing."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from lorif_core.config import Config
from lorif_core.errors import LorifError
from lorif_core.lifecycle.memory_plan import weight_bytes_of
from lorif_core.model.loading import load_skeleton
from lorif_core.spec import IndexSpec
from tasks.cluster import Resources, cluster
from tasks.dispatch import Failed, Workers
from tasks.memory import model_settings
from tasks.workers.encoding import EncodingRole
from tasks.workers.start import start


class ModelWorkers(AbstractContextManager["ModelWorkers"]):
    """The workers of a flow for the length of a `with` block. The first step that has work starts them.

    The caller stays connected to Ray for the whole block (`cluster`). A step that fails ends the workers; the next
    step, or the next attempt, starts new ones.

    Args:
        config: config of the flow.

    Attributes:
        start_seconds: time that steps waited until workers had started and loaded the model.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._workers: Workers | None = None
        self.start_seconds = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def clock(self) -> float:
        """Seconds on a clock that stands still while a step waits for workers to start."""
        return time.perf_counter() - self.start_seconds

    def release(self) -> None:
        """Free the model and what the workers reserve, so that workers with another role can start."""
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.__exit__(None, None, None)

    @contextmanager
    def step(self, spec: IndexSpec, count: int) -> Iterator[Workers]:
        """The workers for one step: `count` of them, as far as the cluster has them, or more of an earlier step.

        Args:
            spec: spec of the rows; it names the checkpoint and the layers.
            count: number of workers that the step can keep busy.

        Raises:
            LorifError: no worker could load the model.
        """
        try:
            with model_cluster(self._config) as resources:
                count = min(resources.workers, count)
                if self._workers is None:
                    started = time.perf_counter()
                    self._workers = Workers(
                        lambda: start(EncodingRole, resources, self._config, with_model=True),
                        count, model_settings(self._config),
                    ).__enter__()  # fmt: skip
                    _load(self._workers, spec, count)
                    self.start_seconds += time.perf_counter() - started
                else:
                    self._workers.grow(count)
                yield self._workers
        except BaseException as error:
            workers, self._workers = self._workers, None
            if workers is not None:
                workers.__exit__(type(error), error, error.__traceback__)
            raise


def model_cluster(config: Config) -> AbstractContextManager[Resources]:
    """`cluster`, with as many GPUs for each worker as the weights of the config's model need."""
    return cluster(config.compute, lambda: weight_bytes_of(config, load_skeleton(config.model, config.storage)))


def _load(workers: Workers, spec: IndexSpec, count: int) -> None:
    """Let each worker that is up load the model; one that comes up later loads it with its first work."""
    spec_json = spec.to_json()
    for outcome in workers.run(range(count), lambda host, _: host.call("load", spec_json), in_flight=1):
        if isinstance(outcome, Failed):
            raise outcome.fault or LorifError(f"loading the model on a worker failed: {outcome.cause}")
