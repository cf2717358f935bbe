"""What a part of a score is: the share of a token of the training text, or of a layer."""

from dataclasses import dataclass

from lorif_core.model.layer_choice import LayerKind


@dataclass(frozen=True, slots=True)
class TrainingToken:
    """A token of a training text and its share of the score of its example, in the unit of the score.

    `start` and `end` are its characters in the stored text. A token without characters of its own, such as an end
    of sequence, has start = end. Tokens that form a character together are one.
    """

    start: int
    end: int
    share: float


@dataclass(frozen=True, slots=True)
class LayerShare:
    """A tracked layer and its share of a score, in the unit of the score.

    Attributes:
        layer: its full name.
        block: the number of its block, or None outside of blocks.
        kind: `attention`, `mlp`, `expert` (an expert of a mixture), or `other` if its name shows none of them.
        share: the sum over all layers is the score.
    """

    layer: str
    block: int | None
    kind: LayerKind
    share: float
