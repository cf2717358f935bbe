"""Rows that a training could not record are computed at the trained model, when the recording is published.

The first examples of a training make the whitening, and those of the warm-up come before it. What training does
not show again would have no row. Their gradients cannot wait for the whitening: those of 256 examples of 256
tokens take 4 GiB with 15 layers of 512 x 576, which is more than a training has to spare.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

from lorif_core.config import Config
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import LorifError
from lorif_core.lifecycle.index_shard import ShardIndexer, model_config
from lorif_core.model.loading import load_model
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.recording.journal import BEFORE_METRIC, Recording
from lorif_core.spec import IndexSpec
from lorif_core.storage.faults import one_line
from lorif_core.tables.schema import ShardRows

log = logging.getLogger(__name__)

MOST = 4096
"""Examples whose rows are computed in the process that publishes; more of them are work for `lorif update`."""

Skipped = list[tuple[str, str]]
"""Ids of examples without a row, and why."""


class RowsAfterwards:
    """Computes rows with the whitening of the recorded ones.

    Args:
        config: CONFIG with the checkpoint of the trained model.
        recording: what was recorded.
        spec: spec of the recorded rows.
        examples: number of all examples that need a row.
    """

    def __init__(self, config: Config, recording: Recording, spec: IndexSpec, examples: int) -> None:
        self._config, self._recording, self._spec = config, recording, spec
        self._is_possible = examples <= MOST
        self._indexer: ShardIndexer | None = None

    def encode(self, examples: Sequence[Example]) -> tuple[list[ShardRows], Skipped]:
        """Rows of examples, if there are any, and the examples that get none.

        Too little memory beside the model in training, or another failure that a build explains, costs only these
        rows. After it no further ones are computed.

        Raises:
            Exception: an error of another kind.
        """
        if self._is_possible and examples:
            try:
                rows, skipped, _ = self._loaded().encode(examples)
                checkpoints = [self._recording.row_checkpoint(())] * len(rows.examples)
                return [replace(rows, checkpoints=checkpoints)] if checkpoints else [], skipped
            except Exception as error:
                if not isinstance(error, LorifError) and not is_out_of_memory(error):
                    raise
                self._is_possible, self._indexer = False, None
                cause = error if isinstance(error, LorifError) else one_line(error)
                log.error("the rows of the first examples of the training are not computed: %s", cause)
        return [], [(example.example_id, BEFORE_METRIC) for example in examples]

    def _loaded(self) -> ShardIndexer:
        if self._indexer is None:
            log.info("computing rows of examples that training showed only before the metric was there")
            model = load_model(model_config(self._config, self._spec), self._config.storage)
            self._indexer = ShardIndexer(self._config, self._spec, model)
        return self._indexer
