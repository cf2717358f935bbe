"""The role of `lorif check`: it loads the model as a worker of a build does, and tries a sample."""

import torch

from lorif_core.config import Config
from lorif_core.lifecycle.trial import Trial, run_trial
from lorif_core.spec import IndexSpec, ShardRef


class TrialRole:
    """Runs the trial of a build."""

    def __init__(self, config: Config, threads: int) -> None:
        torch.set_num_threads(threads)
        self._config = config

    def run(self, spec_json: str, shard: ShardRef) -> Trial:
        """See `run_trial`."""
        return run_trial(self._config, IndexSpec.from_json(spec_json), shard)
