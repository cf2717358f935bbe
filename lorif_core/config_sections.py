"""The sections `projection` and `code` of CONFIG, and what all sections have in common."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lorif_core.spec import CodeDtype, CodeKind

PositiveInt = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A section of a YAML file: unknown keys are refused, and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)


class ProjectionConfig(Section):
    """Two-sided projection of the gradients, whose defaults come from the preset."""

    kind: Literal["random", "folded"] = "random"
    """`random` multiplies both sides with seeded +-1, as the paper; `folded` adds coordinates with such signs."""
    whiten: bool = False
    """Whiten both sides with covariances measured on a sample of the corpus, so that a product of gradients is an
    influence in the K-FAC metric. Whitened gradients need no curvature: set `curvature.kind` to `none`."""
    factor: PositiveInt = 16
    """f, the factor by which each side of a `random` projection shrinks: `d1 = ceil(in/f)` and
    `d2 = ceil(out/f)`; 1 means no projection. A smaller factor is more accurate, but rows are larger."""
    fold: Literal["auto"] | PositiveInt = "auto"
    """Number of coordinates of the longer side that a `folded` projection adds to one; 1 folds nothing, and `auto`
    makes the side about as long as the shorter one."""
    max_side: Literal["auto"] | PositiveInt | None = "auto"
    """Largest size of a side of a `folded` projection; longer ones are folded further, and `null` sets no limit.
    `auto` takes 1,024, and halves it down to 128 until `code.bytes` buys four terms of each layer, and until the
    whitening takes at most half of `compute.memory_gb`. An index keeps the sizes it has under `auto`."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the projection matrices and of the curvature fit."""
    calibration_examples: Literal["auto"] | PositiveInt = "auto"
    """Number of examples, drawn across all shards, on which the covariances are measured with `whiten`. `auto`
    takes 256, but at most a sixteenth of the corpus, and at least 128 if it has them. An index that was built with
    a number keeps it under `auto`."""

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> "ProjectionConfig":
        for key in ("factor",) if self.kind == "folded" else ("fold", "max_side"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with kind {self.kind}; set kind too, or leave {key} out")
        return self

    @model_validator(mode="before")
    @classmethod
    def _whitening_is_a_switch(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and raw.get("kind") == "whitened":
            raise ValueError("kind whitened is now a switch; write kind: random and whiten: true")
        return raw


class CodeConfig(Section):
    """Stored form of a projected gradient, whose defaults come from the preset."""

    kind: CodeKind = "rank"
    """`rank` stores low-rank factors (LoRIF), `cut` low-rank factors of +-1, and `dense` the whole projected
    gradient (LoGRA)."""
    rank: PositiveInt = 1
    """c, the rank of the factors of kinds `rank` and `cut`; a layer with a smaller side has that many. A higher
    rank is more accurate, and the codes grow in proportion."""
    dtype: CodeDtype = "float16"
    """Stored number type; `int4` and `sign` are packed into bytes. Kind `cut` requires `sign`."""
    bytes: PositiveInt | None = None
    """Budget of bytes of a row. It chooses the rank (at most 64), how many late layers `model.layers: auto` takes
    of a deep model, and dense signs where they take no more bytes; `null` uses `rank`."""

    @model_validator(mode="after")
    def _rank_and_dtype_fit_the_kind(self) -> "CodeConfig":
        if self.bytes is not None and self.kind == "dense":
            raise ValueError("bytes chooses a rank, and kind dense has none; use kind cut, or leave bytes out")
        if self.kind == "cut" and self.dtype != "sign":
            raise ValueError(f"kind cut stores signs; set dtype: sign instead of {self.dtype}")
        return self


class BinaryConfig(Section):
    """Layout of files of token ids that don't state it themselves."""

    dtype: Literal["uint8", "uint16", "uint32", "int32", "int64"] | None = None
    """Type of the ids, little-endian, in `.bin` files, which with `null` must have an `.idx`, in `.npy` files
    without a header, and in columns of bytes of MDS shards, where `null` means int64."""
    length: Annotated[int, Field(ge=2)] | None = None
    """Number of tokens of a row of a `.bin` file, or of a `.npy` file of one dimension; the last is shorter."""
    offsets: str | None = None
    """Ending of the file beside each of these that says at which token rows begin: with `.offsets.npy`, that of
    `a.bin` is `a.offsets.npy`. It is `.npy`, or has int64 only; the end of the last row may be left out."""

    @property
    def is_set(self) -> bool:
        """Whether the section has a key."""
        return self != BinaryConfig()

    @model_validator(mode="after")
    def _rows_are_cut_in_one_way(self) -> "BinaryConfig":
        if self.length is not None and self.offsets is not None:
            raise ValueError("length and offsets both say where rows begin; set one of them")
        return self
