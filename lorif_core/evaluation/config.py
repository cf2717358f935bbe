"""The keys of EVALUATION, the YAML file of `lorif evaluate`. The docstring of a key is its description."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lorif_core.config import Config, Uri
from lorif_core.config_file import parse_config, read_keys, validate_keys
from lorif_core.config_sections import PositiveInt, Section
from lorif_core.errors import UserError
from lorif_core.evaluation.tail_patch import PatchStep
from lorif_core.evaluation.training_recipe import Recipe

_LENGTH = 512  # tokens of an example if the config does not say

BM25 = "BM25"
RANDOM = "random"
"""Name of the baseline of tail-patch: examples drawn at random."""


class TrainingConfig(Section):
    """How a model is trained from the checkpoint on the corpus or a subset of it (`training_recipe.py`)."""

    epochs: PositiveInt = 3
    """Number of passes over the examples."""
    batch: PositiveInt = 16
    """Number of examples of a training step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Peak learning rate of AdamW, after the warm-up. Lower it if training diverges."""
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    """Weight decay of AdamW."""
    warmup_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the training steps in which the learning rate rises linearly; afterwards it falls linearly to 0."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the forward pass; `bfloat16` uses autocast, and the weights stay in float32."""

    def recipe(self) -> Recipe:
        """These settings in the form that the trainer takes."""
        return Recipe(**self.model_dump())


class SubsetsConfig(Section):
    """Random subsets of the corpus, and the number of models trained on each, for `lorif evaluate lds`."""

    count: Annotated[int, Field(ge=3)] = 40
    """Number of random subsets, at least 3. More subsets give narrower intervals, and each costs a training."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the corpus in each subset, between 0 and 1."""
    seeds: PositiveInt = 1
    """Number of models trained on each subset, with different seeds; more of them reduce the noise of training."""


class RecallConfig(Section):
    """The sources planted in the corpus for each query (`planting.py`), and the ranks up to which they count."""

    edits: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.0, 0.3, 0.6)
    """Shares of a query's tokens that are dropped, swapped or replaced in its near-duplicates; 0 plants exact
    copies. On examples of 64 tokens, methods differ only above 0.3."""
    per_query: PositiveInt = 1
    """Number of near-duplicates of each query and share."""
    pairs: Uri | None = None
    """Queries file whose rows also have a `source` to plant, such as a paraphrase; `null` plants only edits."""
    cutoffs: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 10, 100)
    """Values of k: recall is the share of sources among the first k results."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the edits."""

    @model_validator(mode="after")
    def _something_is_planted_once(self) -> "RecallConfig":
        if not self.edits and self.pairs is None:
            raise ValueError("there is nothing to plant; set edits or pairs")
        for name, values in (("edits", self.edits), ("cutoffs", self.cutoffs)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} has a value twice")
        return self


class TailPatchConfig(Section):
    """One training step on the proponents of each query (`tail_patch.py`)."""

    top_k: PositiveInt = 10
    """Number of proponents of a query in the training step."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Optimiser of the step: `sgd` steps along the gradient, which favours methods near the plain dot product, and
    `adamw` steps along its sign."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-3
    """Learning rate of the step; with `adamw` use about 1e-5."""

    def step(self) -> PatchStep:
        """These settings in the form that `Patcher` takes."""
        return PatchStep(self.optimizer, self.learning_rate)


class EvaluationConfig(Section):
    """The whole EVALUATION file."""

    config: dict[str, Any]
    """CONFIG without `index`, shared by all methods; its `model` is the checkpoint from which training starts."""
    queries: Uri
    """Queries file, local or `s3://`: jsonl or parquet with `text`, `prompt` and `completion`, or `tokens`."""
    training: TrainingConfig = TrainingConfig()
    """How a model is trained from the checkpoint."""
    subsets: SubsetsConfig = SubsetsConfig()
    """Random subsets of the corpus, and the number of models trained on each."""
    methods: dict[str, dict[str, Any]]
    """The methods to compare: a name for each, with the keys of CONFIG in which it differs from `config`."""
    compare: tuple[tuple[str, str], ...] = ()
    """Pairs of methods whose difference is reported; `BM25` and, for tail-patch, `random` may also be named."""
    bm25: bool = True
    """Add the baseline BM25, which ranks by shared words. Set it to `false` if the model has no tokenizer."""
    recall: RecallConfig = RecallConfig()
    """Settings of `lorif evaluate recall`."""
    tail_patch: TailPatchConfig = TailPatchConfig()
    """Settings of `lorif evaluate tail-patch`."""

    def base(self) -> Config:
        """CONFIG of the checkpoint that training starts from; its index is never built."""
        return _parse({**self.config, "index": "unused"}, "config")

    def method(self, name: str, index: str, model: str) -> Config:
        """CONFIG of a method. Raises UserError with the method's name if its keys are not valid."""
        raw: dict[str, Any] = {**self.config, "index": index}
        keys = self.methods[name]
        for section, values in keys.items():
            base = raw.get(section)
            raw[section] = {**base, **values} if isinstance(base, dict) and isinstance(values, dict) else values
        raw["model"] = {**raw.get("model", {}), "path": model}
        return _parse(raw, f"methods.{name}")

    def compared(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Those pairs of `compare` whose methods are both in `names`, as not every measure has all baselines."""
        return [pair for pair in self.compare if set(pair) <= set(names)]


def _parse(raw: dict[str, Any], source: str) -> Config:
    """CONFIG whose length is a number, since examples and queries are made before there is an index."""
    config = parse_config(raw, source)
    if config.corpus.max_length != "auto":
        return config
    if "max_length" in config.corpus.model_fields_set:
        raise UserError(f"{source}: corpus.max_length of an evaluation must be a number; write one")
    return config.model_copy(update={"corpus": config.corpus.model_copy(update={"max_length": _LENGTH})})


def load_evaluation(path: str | Path, overrides: list[str] | None = None) -> EvaluationConfig:
    """Read EVALUATION and check the keys of every method.

    Raises:
        UserError: one sentence for the first error.
    """
    raw = read_keys(path, "evaluation", "config, queries and methods", overrides)
    evaluation = validate_keys(EvaluationConfig, raw, str(path))
    _check(evaluation, str(path))
    return evaluation


def _check(evaluation: EvaluationConfig, path: str) -> None:
    if not evaluation.methods:
        raise UserError(f"{path} names no methods; name at least one")
    evaluation.base()
    for name in evaluation.methods:
        if "/" in name or name.startswith(".") or name in ("", BM25, RANDOM):  # names are used as folder names
            raise UserError(
                f"{path}: {name!r} cannot be the name of a method; choose a name without a slash or leading dot"
            )
        evaluation.method(name, "unused", "unused")
    known = {*evaluation.methods, RANDOM, *([BM25] if evaluation.bm25 else [])}
    for pair in evaluation.compare:
        for name in pair:
            if name not in known:
                raise UserError(f"{path}: compare names {name!r}, which is not one of {', '.join(sorted(known))}")
