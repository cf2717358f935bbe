"""What to record, as a CONFIG and what only a recording has."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.gradients.byte_budget import code_spec
from lorif_core.gradients.codes import CodeLayout
from lorif_core.spec import CodeSpec, LayerSpec

log = logging.getLogger(__name__)

Sightings = Literal["last", "mean", "each"]
_EXAMPLES = 256  # of `calibration_examples: auto`
_WHOLE = CodeSpec("dense", 1, "int4")  # of rows that are averaged before their mean is encoded
_MOST_BYTES = 2**20  # of such a row


@dataclass(frozen=True, slots=True)
class RecordingSettings:
    """Settings of a recording.

    Attributes:
        config: CONFIG of the index; its model is the folder that the trained model is saved to.
        ids: key of the ids in a batch, if rows are known by ids; None if they are known by their tokens.
        begin: optimiser steps before the first one that is used, such as those of the warm-up.
        sightings: how the rows of an example become one that training saw several times.
    """

    config: Config
    ids: str | None = None
    begin: int = 0
    sightings: Sightings = "last"

    @property
    def is_whitened(self) -> bool:
        """Whether codes are whitened."""
        return self.config.projection.whiten

    @property
    def calibration_examples(self) -> int:
        """Examples whose covariances make the whitening."""
        examples = self.config.projection.calibration_examples
        return _EXAMPLES if examples == "auto" else examples

    def code(self, layers: Sequence[LayerSpec]) -> CodeSpec:
        """The code of CONFIG. Raises UserError as `code_spec`."""
        return code_spec(self.config.code, layers)

    def journal_code(self, layers: Sequence[LayerSpec]) -> CodeSpec:
        """The code of a gradient in the journal: the whole gradient if a mean is made of it. Raises as `code`."""
        return _WHOLE if self.sightings == "mean" else self.code(layers)

    def affordable(self, layers: Sequence[LayerSpec]) -> "RecordingSettings":
        """The settings with the last row in the place of a mean whose rows would take too many bytes.

        A mean of codes as they are stored is worse than the last of them, so that there is nothing between.
        """
        size = CodeLayout(layers, _WHOLE).bytes_per_example
        if self.sightings != "mean" or size <= _MOST_BYTES:
            return self
        log.warning(
            "examples get their last row, because one of a mean would take %s bytes in the journal, more than %s",
            f"{size:,}", f"{_MOST_BYTES:,}",
        )  # fmt: skip
        return replace(self, sightings="last")

    def can_join(self, stored: CodeSpec, layers: Sequence[LayerSpec]) -> bool:
        """Whether rows can have the code of an index; `each` fills the terms that it has."""
        code = self.code(layers)
        if self.sightings == "each":
            return stored.rank >= code.rank and replace(stored, rank=code.rank) == code
        return stored == code

    def check(self) -> None:
        """Raise UserError for settings that cannot be recorded."""
        config = self.config
        has_metric = config.curvature.kind == "adam" or (config.curvature.kind == "none" and self.is_whitened)
        if config.projection.kind != "folded" or not has_metric:
            raise UserError(
                f"recording needs folded, whitened projections and curvature.kind none, as of the "
                f"presets compact, balanced, fine and quality, or curvature.kind adam; preset {config.preset} has "
                f"others, so run lorif build after training"
            )
        if self.sightings == "each" and config.code.kind == "dense":
            raise UserError(
                f"sightings each keeps the terms of all rows of an example, and dense codes have no terms; use "
                f"sightings mean, or another preset than {config.preset}"
            )
        if config.corpus.chunk:
            raise UserError(
                "recording knows no blocks of records; set corpus.chunk to false and cut records first"
            )
