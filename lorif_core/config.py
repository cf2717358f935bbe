"""CONFIG: the YAML file of a build, its `key.sub=value` overrides, and the sentences that refuse a bad one."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from lorif_core.errors import UserError
from lorif_core.presets import DEFAULT_PRESET, PresetName, with_preset
from lorif_core.spec import CodeDtype, CodeKind

_ADVICE = "give them in the environment, a profile or a role"
_SIGNED = re.compile(r"[?&](x-(amz|goog)-[\w-]+|awsaccesskeyid|signature|sig)=", re.I)


def check_uri(uri: str) -> str:
    """A URI or path as it is. Raises UserError, without repeating them, if it carries credentials."""
    scheme, separator, rest = uri.partition("://")
    if separator and any(sign in rest.split("/")[0] for sign in "@:"):
        raise UserError(
            f"a URI that begins with {scheme}:// carries credentials; {_ADVICE}, and write {scheme}://bucket/path"
        )
    if _SIGNED.search(uri):
        raise UserError(
            f"{uri.partition('?')[0]} is presigned, so its query carries credentials; {_ADVICE}, and write "
            f"s3://bucket/path"
        )
    return uri


def check_endpoint(endpoint: str, name: str = "storage.endpoint") -> str:
    """An endpoint as it is. Raises UserError, without repeating it, if it carries or may carry credentials."""
    if any(sign in endpoint for sign in "@?#"):
        raise UserError(f"{name} carries credentials, or a query; {_ADVICE}, and write https://host:port")
    return endpoint


PositiveInt = Annotated[int, Field(ge=1)]
Uri = Annotated[str, AfterValidator(check_uri)]


class Section(BaseModel):
    """A part of a YAML file: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(Section):
    """The checkpoint: a local folder, an s3:// URI or a hub id."""

    path: Uri
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    layers: str | None = None
    """Regex searched in module names; null tracks every linear layer except the output head."""
    device_map: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    """Opt in to weights that are not safetensors; unpickling runs code of whoever made them."""


class CorpusConfig(Section):
    """Where the training examples are, and which columns make an example."""

    uri: Uri
    text: str | None = "text"
    prompt: str | None = None
    completion: str | None = None
    tokens: str | None = None
    labels: str | None = None
    id: str | None = None
    max_length: Annotated[int, Field(ge=2)] = 512
    chunk: bool = False
    store_text: bool = True

    @model_validator(mode="after")
    def _columns_go_together(self) -> "CorpusConfig":
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion must be given together")
        if self.labels is not None and self.tokens is None:
            raise ValueError("labels needs tokens")
        if self.text is None and self.prompt is None and self.tokens is None:
            raise ValueError("one of text, prompt+completion or tokens must name a column")
        return self


class ProjectionConfig(Section):
    """Two-sided projection of the gradients."""

    kind: Literal["random", "whitened"] = "random"
    factor: PositiveInt = 16
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    calibration_examples: PositiveInt = 512
    """Sequences of the corpus that whitened projections are calibrated on; random ones need none."""


class CodeConfig(Section):
    """What is stored of each projected gradient."""

    kind: CodeKind = "rank"
    rank: PositiveInt = 1
    dtype: CodeDtype = "float16"

    @model_validator(mode="after")
    def _cut_factors_are_signs(self) -> "CodeConfig":
        if self.kind == "cut" and self.dtype != "sign":
            raise ValueError(f"kind cut keeps signs; set dtype: sign instead of {self.dtype}")
        return self


class CurvatureConfig(Section):
    """The preconditioner."""

    kind: Literal["woodbury", "exact", "none"] = "woodbury"
    rank: PositiveInt = 256
    oversample: Annotated[int, Field(ge=0)] = 10
    power_iterations: Annotated[int, Field(ge=1, le=10)] = 3
    damping: Literal["retained", "trace", "paper"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = (
        "retained"
    )
    tail: Literal["truncated", "tail"] = "truncated"


class QueryConfig(Section):
    """How a query is represented when it is scored."""

    factored: bool = False
    """Keep only the rank of the stored codes of its gradient too, as the paper does; dense is better and free."""


class UpdateConfig(Section):
    """How an index goes on when its corpus does."""

    curvature: Literal["merge", "refit"] = "merge"
    """`merge` adds the curvature of new rows to that of old ones; `refit` passes over all rows."""
    refit_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of rows that may leave (files that changed) before a curvature is fitted anew."""
    policy: Literal["append", "refresh", "auto"] = "auto"
    """At a new checkpoint: `append` leaves rows at theirs, `refresh` computes them anew, `auto` measures first."""
    max_drift: Annotated[float, Field(ge=0, le=1)] = 0.1
    """1 - cosine of old and new gradients above which `auto` computes rows anew."""
    sample_share: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of the rows of older checkpoints that is run at the new one, for the drift and the curvature."""
    keep: PositiveInt | None = None
    """Newest generations that an update leaves; null leaves all, for `lorif gc` to collect."""


class ComputeConfig(Section):
    """Where the work runs and how much memory it may take."""

    ray: str = "local"
    """`local` starts a private one-machine Ray; `auto` or an address attaches to a cluster."""
    workers: Literal["auto"] | PositiveInt = "auto"
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    tokens_per_batch: PositiveInt = 8192
    memory_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    """Working memory of one worker beyond the model, in GiB: sizes curvature layer groups and scan blocks."""


class StorageConfig(Section):
    """Object storage; credentials come from the environment, a profile or an instance role, never from here."""

    endpoint: Annotated[str, AfterValidator(check_endpoint)] | None = None
    region: str | None = None
    profile: str | None = None
    allow_http: bool = False


class Config(Section):
    """The whole CONFIG file."""

    preset: PresetName = DEFAULT_PRESET
    """Defaults of other keys (`presets.py`); explicit keys win."""
    index: Uri
    model: ModelConfig
    corpus: CorpusConfig
    projection: ProjectionConfig = ProjectionConfig()
    code: CodeConfig = CodeConfig()
    curvature: CurvatureConfig = CurvatureConfig()
    query: QueryConfig = QueryConfig()
    update: UpdateConfig = UpdateConfig()
    compute: ComputeConfig = ComputeConfig()
    storage: StorageConfig = StorageConfig()

    @model_validator(mode="before")
    @classmethod
    def _preset_first(cls, raw: Any) -> Any:
        return with_preset(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _lengths_fit(self) -> "Config":
        if self.compute.tokens_per_batch < self.corpus.max_length:
            raise ValueError(
                f"compute.tokens_per_batch ({self.compute.tokens_per_batch}) must be at least "
                f"corpus.max_length ({self.corpus.max_length})"
            )
        return self
