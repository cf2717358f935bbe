"""What to record, as a CONFIG and what only a recording has."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorif_core.config import Config
from lorif_core.errors import UserError
from lorif_core.gradients.byte_budget import code_spec
from lorif_core.spec import CodeSpec, LayerSpec

Sightings = Literal["last", "mean"]
_EXAMPLES = 256  # of `calibration_examples: auto`


@dataclass(frozen=True, slots=True)
class RecordingSettings:
    """Settings of a recording.

    Attributes:
        config: CONFIG of the index; its model is the folder that the trained model is saved to.
        ids: key of the ids in a batch, if rows are known by ids; None if they are known by their tokens.
        begin: optimiser steps before the first one that is used, such as those of the warm-up.
        sightings: which row an example has that training saw several times.
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
        """The code of a gradient. Raises UserError as `code_spec`."""
        return code_spec(self.config.code, layers)

    def check(self) -> None:
        """Raise UserError for settings that cannot be recorded."""
        config = self.config
        if config.curvature.kind != "none" or config.projection.kind != "folded" or not config.projection.whiten:
            raise UserError(
                f"recording needs folded, whitened projections and curvature.kind none, as of the "
                f"presets compact, balanced, fine and quality; preset {config.preset} has others, so run lorif "
                f"build after training"
            )
        if config.corpus.chunk:
            raise UserError(
                "recording knows no blocks of records; set corpus.chunk to false and cut records first"
            )
