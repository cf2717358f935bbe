"""The keys of CONFIG, the YAML file of a build. The docstring of a key is its description in the reference."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from lorif_core.config_sections import BinaryConfig, CodeConfig, PositiveInt, ProjectionConfig, Section
from lorif_core.errors import UserError
from lorif_core.presets import DEFAULT_PRESET, PresetName, apply_preset

_ADVICE = "provide them through the environment, a profile or a role"
_PRESIGNED = re.compile(r"[?&](x-(amz|goog)-[\w-]+|awsaccesskeyid|signature|sig)=", re.I)


def check_uri(uri: str) -> str:
    """Return the URI or path unchanged. Raises UserError, without showing them, if it contains credentials."""
    scheme, separator, rest = uri.partition("://")
    if separator and any(character in rest.split("/")[0] for character in "@:"):
        raise UserError(
            f"a URI that begins with {scheme}:// carries credentials; {_ADVICE}, and write {scheme}://bucket/path"
        )
    if _PRESIGNED.search(uri):
        raise UserError(
            f"{uri.partition('?')[0]} is presigned, so its query carries credentials; {_ADVICE}, and write "
            f"s3://bucket/path"
        )
    return uri


def check_endpoint(endpoint: str, name: str = "storage.endpoint") -> str:
    """Return the endpoint unchanged. Raises UserError, without showing it, if it may contain credentials."""
    if any(character in endpoint for character in "@?#"):
        raise UserError(f"{name} carries credentials or a query; {_ADVICE}, and write https://host:port")
    return endpoint


OF_THE_MODEL = "model"
"""Value of `corpus.chat_template` for the template of the model's tokenizer."""


def read_template(value: str) -> str:
    """A chat template from its text or from the path of its file. Raises UserError if there is no such file."""
    if value == OF_THE_MODEL or "{{" in value or "{%" in value:
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is no path of a text file"
        raise UserError(
            f"corpus.chat_template {value!r} cannot be read ({reason}); name a file with a Jinja template, write "
            f"the template itself, or {OF_THE_MODEL} for that of the model"
        ) from None


Uri = Annotated[str, AfterValidator(check_uri)]


class ModelConfig(Section):
    """The checkpoint whose training data are attributed."""

    path: Uri
    """The checkpoint, which may be a LoRA adapter: a local folder, an `s3://` URI or a hub id."""
    revision: str | None = None
    """Revision (branch, tag or commit) of a hub id; `null` uses the default branch."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Floating-point type of the weights in memory; `auto` uses the type of the checkpoint."""
    layers: str = "auto"
    """The tracked linear layers. `all` are all but the output head, `mlp` those of the MLPs, and `auto` a few late
    ones, or all MLPs of a model of few blocks; anything else is a regular expression that is searched in module
    names. `lorif check` prints which they are, and why."""
    exclude: str | None = None
    """Regular expression that is searched in module names to leave linear layers out; `null` leaves none out."""
    device_map: str | None = None
    """Placement of the model on devices, as in transformers; `null` uses CUDA if it is available, else the CPU."""
    trust_remote_code: bool = False
    """Run the Python code that comes with the checkpoint. Set it to `true` only if you trust the author."""
    allow_pickle: bool = False
    """Accept weights that are not safetensors. Unpickling runs code of their author, so set it to `true` only if
    you trust the author."""


class CorpusConfig(Section):
    """Location of the training examples, and the columns that make an example."""

    uri: Uri
    """The training data: a file, a folder or a glob, local or `s3://`, or a dataset of the Hugging Face hub as
    `hf://datasets/OWNER/NAME[@REVISION][/SPLIT]`."""
    text: str | None = "text"
    """Column of plain text, whose tokens are all scored; used only if `tokens`, `messages` and `prompt` are not
    set."""
    messages: str | None = None
    """Column of conversations: lists of messages with `role` and `content`, rendered by the chat template. What
    the assistant says is scored; other turns are context. A column `tools` is read where a file has it."""
    prompt: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Column of prompts, which are not scored; requires `completion`, and takes precedence over `text`. Of several
    columns, such as `[instruction, input]`, those that are not empty are joined by an empty line."""
    completion: str | None = None
    """Column of completions, the scored part of an example; requires `prompt`. Prompt and completion are joined as
    they are, without a space, and tokenised as one text. A token with characters of both is scored, and so is a
    special token that the tokenizer puts at the end."""
    chat_template: Annotated[str, AfterValidator(read_template)] | None = None
    """Template that renders conversations: a Jinja template, the path of its file, or `model` for that of the
    model's tokenizer, which `null` means for `messages`. With `prompt` and `completion` it makes them turns of the
    user and of the assistant, or takes them as lists of messages; with `null` they are plain texts."""
    tokens: str | None = None
    """Column of token ids for data that are already tokenised; takes precedence over all other columns."""
    labels: str | None = None
    """Column of target ids, one per token, with -100 where a token is not scored; requires `tokens`. With `null`
    all tokens are scored."""
    mask: str | None = None
    """Column with 1 for each of the `tokens` and 0 for padding, which is cut off at both ends; requires `tokens`.
    Without it padded tokens are refused."""
    id: str | None = None
    """Column of unique ids, strings or integers; `null` names each example `<file>#<row>`."""
    binary: BinaryConfig = BinaryConfig()
    """Layout of files of token ids that don't state it themselves."""
    max_length: Literal["auto"] | Annotated[int, Field(ge=2)] = "auto"
    """Maximum number of tokens of an example and of a query. Longer records are truncated, or cut into blocks with
    `chunk`. `auto` leaves 99 of 100 records of a sample whole: it takes 512 to 2,048, at most the positions of the
    model and `compute.tokens_per_batch`, and 512 with `chunk`. An index keeps the number it has under `auto`."""
    chunk: bool = False
    """Cut a record longer than `max_length` into blocks and index all of them, instead of truncating it."""
    store_text: bool = True
    """Store the texts in the index, for answers and reports. Set it to `false` if the texts must not be copied."""

    @property
    def longest(self) -> int:
        """`max_length` as a number. Raises ValueError while it is `auto`, until a plan has settled it."""
        if self.max_length == "auto":
            raise ValueError("corpus.max_length is auto, and no plan has settled it")
        return self.max_length

    @model_validator(mode="after")
    def _columns_go_together(self) -> "CorpusConfig":
        if (self.prompt is None) != (self.completion is None):
            raise ValueError("prompt and completion must be given together")
        if self.messages is not None and (self.tokens is not None or self.prompt is not None):
            raise ValueError("messages cannot be combined with tokens or prompt; name one of them")
        if self.chat_template is not None and (self.tokens is not None or not self.has_chat):
            raise ValueError("chat_template needs messages, or prompt and completion")
        for name in ("labels", "mask"):
            if getattr(self, name) is not None and self.tokens is None:
                raise ValueError(f"{name} needs tokens")
        if all(column is None for column in (self.text, self.messages, self.prompt, self.tokens)):
            raise ValueError("one of text, messages, prompt+completion or tokens must name a column")
        return self

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """The columns that make a prompt."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt or ()

    @property
    def has_chat(self) -> bool:
        """Whether the examples are conversations that a chat template renders."""
        is_pair_of_turns = self.prompt is not None and self.chat_template is not None
        return self.tokens is None and (self.messages is not None or is_pair_of_turns)


class CurvatureConfig(Section):
    """The preconditioner H = C + lambda I of each layer, whose defaults come from the preset."""

    kind: Literal["woodbury", "exact", "adam", "none"] = "woodbury"
    """`woodbury` uses a truncated SVD of the gradients, `exact` all directions (only for small layers), `adam` the
    second moments of the optimiser that trained the model, and `none` sets H = I. Use `none` with whitened
    projections, and `woodbury` with others. `adam` needs folded ones, which may be whitened, too."""
    optimizer_state: Uri | None = None
    """State of the optimiser, for `adam`: what `torch.save` made of its `state_dict()`, or safetensors that have
    `exp_avg_sq.PARAMETER` for each tracked parameter. `null` takes `optimizer.pt` in the folder of the model, else
    `optimizer.safetensors`. An index keeps what it needs of the file."""
    rank: PositiveInt = 256
    """r, the number of eigenvectors of each layer that `woodbury` uses. The default is lowered to what the data
    allow; an explicit rank above that is refused."""
    oversample: Annotated[int, Field(ge=0)] = 10
    """Number of basis vectors beyond `rank` in the SVD; more make the last eigenvectors more accurate."""
    power_iterations: Annotated[int, Field(ge=1, le=10)] = 3
    """Number of passes over the table before the final one, 1 to 10; more passes make the SVD more accurate."""
    damping: Literal["retained", "trace", "paper"] | Annotated[float, Field(gt=0, allow_inf_nan=False)] = (
        "retained"
    )
    """lambda of each layer: `retained` is 0.5 times the mean of the r eigenvalues, `trace` is 0.5 times the mean
    of all eigenvalues, `paper` is 0.1 times the mean of the first r + oversample, and a number is used as it
    is."""
    tail: Literal["truncated", "tail"] = "truncated"
    """H^-1 outside the r eigenvectors: `truncated` uses 1/lambda, and `tail` uses 1/(lambda + mean of the other
    eigenvalues)."""

    @model_validator(mode="after")
    def _state_is_for_adam(self) -> "CurvatureConfig":
        if self.optimizer_state is not None and self.kind != "adam":
            raise ValueError(f"optimizer_state has no effect with kind {self.kind}; set kind to adam, or drop it")
        return self


class QueryConfig(Section):
    """Form of a query's gradient."""

    factored: bool = False
    """Reduce the gradient of a query to the rank of the stored codes, as in the paper. `false` keeps it dense,
    which is more accurate at the same cost."""


class UpdateConfig(Section):
    """How `lorif update` extends an index."""

    curvature: Literal["merge", "refit"] = "merge"
    """`merge` adds the curvature of the new rows to the current one; `refit` fits it to all rows, which takes
    passes over the whole table."""
    refit_share: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of rows, 0 to 1, that may have left since the last fit (changed files) before `merge` fits anew."""
    policy: Literal["append", "refresh", "auto"] = "auto"
    """Treatment of the old rows at a new checkpoint: `append` leaves them at their own checkpoint, `refresh`
    computes them again, and `auto` lets them follow the new one, or computes them again if their drift exceeds
    `max_drift`."""
    max_drift: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Drift above which `auto` computes rows again: 1 - cosine of old and new gradients, 0 to 1."""
    sample_share: Annotated[float, Field(gt=0, le=1)] = 0.02
    """Share of the rows of older checkpoints that `auto` and `append` run at the new one, to measure the drift
    and to fit the curvature."""
    keep: PositiveInt | None = None
    """Number of newest generations that remain after an update, which removes the others; `null` keeps all of
    them until `lorif gc`."""


class ComputeConfig(Section):
    """Where the work runs, and how much memory it uses."""

    ray: str = "local"
    """`local` starts a private Ray on this machine; `auto` or `host:port` connects to a cluster."""
    workers: Literal["auto"] | PositiveInt = "auto"
    """Number of workers; `auto` starts one per GPU, or without GPUs one per 4 cores."""
    gpus_per_worker: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """GPUs of each worker, or a share of one; `auto` takes as few as have twice the memory of the weights."""
    tokens_per_batch: Literal["auto"] | PositiveInt = "auto"
    """Maximum number of tokens of a batch, including padding; at least `corpus.max_length`. `auto` takes what fits
    into memory. In both cases a batch that does not fit is halved."""
    memory_gb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    """Working memory of one worker besides its model, in GiB. It determines the size of row blocks and of the
    layer groups of a curvature fit; a higher value needs fewer passes."""


class StorageConfig(Section):
    """Access to the object store. Credentials come from the environment, a profile or a role, never from here."""

    endpoint: Annotated[str, AfterValidator(check_endpoint)] | None = None
    """URL of an S3-compatible store; `null` uses AWS_ENDPOINT_URL, else the profile's endpoint, else AWS."""
    region: str | None = None
    """Region of the buckets; `null` uses the region of the environment or of the profile."""
    profile: str | None = None
    """Profile in the AWS configuration files; `null` uses AWS_PROFILE, else the default one."""
    allow_http: bool = False
    """Allow an endpoint with `http://`, which is not encrypted."""


class Config(Section):
    """The whole CONFIG file."""

    preset: PresetName = DEFAULT_PRESET
    """Set of defaults for layers, projection, code, curvature and query, from small rows (`compact`) to accurate
    scores (`quality`); `paper` is LoRIF as published. Explicit keys override it."""
    index: Uri
    """Location of the index, a LanceDB database: a local folder or an `s3://` URI."""
    model: ModelConfig
    """The checkpoint whose training data are attributed."""
    corpus: CorpusConfig
    """Location of the training examples, and the columns that make an example."""
    projection: ProjectionConfig = ProjectionConfig()
    """Two-sided projection of the gradients."""
    code: CodeConfig = CodeConfig()
    """Stored form of a projected gradient."""
    curvature: CurvatureConfig = CurvatureConfig()
    """The preconditioner of the scores."""
    query: QueryConfig = QueryConfig()
    """Form of a query's gradient."""
    update: UpdateConfig = UpdateConfig()
    """How `lorif update` extends an index."""
    compute: ComputeConfig = ComputeConfig()
    """Where the work runs, and how much memory it uses."""
    storage: StorageConfig = StorageConfig()
    """Access to the object store, without credentials."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, raw: Any) -> Any:
        return apply_preset(raw) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _batch_has_room_for_an_example(self) -> "Config":
        batch, longest = self.compute.tokens_per_batch, self.corpus.max_length
        if batch != "auto" and longest != "auto" and batch < longest:
            raise ValueError(f"compute.tokens_per_batch ({batch}) must be at least corpus.max_length ({longest})")
        return self

    @model_validator(mode="after")
    def _adam_scales_folded_sides(self) -> "Config":
        if self.curvature.kind == "adam" and self.projection.kind != "folded":
            raise ValueError(f"curvature.kind adam needs projection.kind folded instead of {self.projection.kind}")
        return self
