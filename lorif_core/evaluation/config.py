"""EVALUATION: the YAML file of `lorif evaluate`: a corpus, a training recipe, and the methods to compare."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from lorif_core.config import Config, PositiveInt, Section, Uri
from lorif_core.config_file import apply_override, explain_invalid, parse_config
from lorif_core.errors import UserError
from lorif_core.evaluation.tail_patch import PatchStep
from lorif_core.evaluation.training_recipe import Recipe

BM25 = "BM25"
RANDOM = "random"
"""Examples drawn at random: what tail-patch compares with."""


class TrainingConfig(Section):
    """How a model is trained from the checkpoint on a subset of the corpus (`recipe.py`)."""

    epochs: PositiveInt = 3
    batch: PositiveInt = 16
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    dtype: Literal["float32", "bfloat16"] = "float32"

    def recipe(self) -> Recipe:
        """The same for the trainer."""
        return Recipe(**self.model_dump())


class SubsetsConfig(Section):
    """Random subsets of the corpus, and how often a model is trained on each."""

    count: Annotated[int, Field(ge=3)] = 40
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    seeds: PositiveInt = 1


class RecallConfig(Section):
    """What is planted in the corpus for each query (`planting.py`), and how deep a ranking is searched for it."""

    edits: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.3, 0.6)
    """Shares of a query's tokens that are edited in its near-duplicates; 0 plants exact copies.

    On testbeds of 64 tokens every method finds nearly all up to 0.3; methods differ above it.
    """
    per_query: PositiveInt = 1
    """Near-duplicates of each query and share."""
    pairs: Uri | None = None
    """A file of queries, each with its own `source` to plant, such as a paraphrase."""
    cutoffs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 10, 100)
    seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _something_is_planted_once(self) -> "RecallConfig":
        if not self.edits and self.pairs is None:
            raise ValueError("there is nothing to plant; give edits or pairs")
        for name, values in (("edits", self.edits), ("cutoffs", self.cutoffs)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice")
        return self


class TailPatchConfig(Section):
    """One step of training on the proponents of each query (`tailpatch.py`)."""

    top_k: PositiveInt = 10
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3

    def step(self) -> PatchStep:
        """The same for the patcher."""
        return PatchStep(self.optimizer, self.learning_rate)


class EvaluationConfig(Section):
    """The whole EVALUATION file.

    `config` is CONFIG without `index`; its `model` is the checkpoint that training starts from. `methods` are
    names with the keys of CONFIG that make them, `compare` pairs of names whose difference is reported.
    """

    config: dict[str, Any]
    queries: Uri
    training: TrainingConfig = TrainingConfig()
    subsets: SubsetsConfig = SubsetsConfig()
    methods: dict[str, dict[str, Any]]
    compare: tuple[tuple[str, str], ...] = ()
    bm25: bool = True
    recall: RecallConfig = RecallConfig()
    tail_patch: TailPatchConfig = TailPatchConfig()

    def base(self) -> Config:
        """CONFIG of the checkpoint that training starts from; its index is never made."""
        return parse_config({**self.config, "index": "unused"}, "config")

    def method(self, name: str, index: str, model: str) -> Config:
        """CONFIG of a method. Raises UserError naming it for keys that are wrong."""
        raw: dict[str, Any] = {**self.config, "index": index}
        keys = self.methods[name]
        for section, values in keys.items():
            own = raw.get(section)
            raw[section] = {**own, **values} if isinstance(own, dict) and isinstance(values, dict) else values
        raw["model"] = {**raw.get("model", {}), "path": model}
        return parse_config(raw, f"methods.{name}")

    def compared(self, names: Collection[str]) -> list[tuple[str, str]]:
        """The pairs to compare among methods that were measured: not every measure has all baselines."""
        return [pair for pair in self.compare if set(pair) <= set(names)]


def load_evaluation(path: str | Path, overrides: list[str] | None = None) -> EvaluationConfig:
    """Read EVALUATION and check every method's keys.

    Raises:
        UserError: one sentence for the first thing that is wrong.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the evaluation file {path} cannot be read: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the evaluation file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UserError(f"the evaluation file {path} must hold keys such as config, queries and methods")
    for override in overrides or []:
        apply_override(raw, override)
    try:
        evaluation = EvaluationConfig.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{path}: {explain_invalid(error, EvaluationConfig)}") from None
    _check(evaluation, str(path))
    return evaluation


def _check(evaluation: EvaluationConfig, path: str) -> None:
    if not evaluation.methods:
        raise UserError(f"{path} names no methods; give at least one")
    evaluation.base()
    for name in evaluation.methods:
        if "/" in name or name.startswith(".") or name in ("", BM25, RANDOM):  # names become names of folders
            raise UserError(
                f"{path}: {name!r} cannot be the name of a method; choose another, without a slash or a first dot"
            )
        evaluation.method(name, "unused", "unused")
    known = {*evaluation.methods, RANDOM, *([BM25] if evaluation.bm25 else [])}
    for pair in evaluation.compare:
        for name in pair:
            if name not in known:
                raise UserError(f"{path}: compare names {name!r}, which is none of {', '.join(sorted(known))}")
