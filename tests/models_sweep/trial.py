"""One small model through the product's own path, and its gradients held against autograd in float64.

A trial saves a random model, loads it as `lorif build` does, captures the gradients of a padded batch, and
compares each example and layer with plain autograd of the token-summed next-token loss of the one unpadded
example.
"""

import copy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from lorif_core.config import Config
from lorif_core.corpus.tokenise import Example
from lorif_core.errors import UserError
from lorif_core.gradients.extract import Extractor
from lorif_core.lifecycle.index_shard import model_config
from lorif_core.lifecycle.plan import covered, make_spec
from lorif_core.lifecycle.tracking import tracked_layers
from lorif_core.model.layers import tracked_module
from lorif_core.model.loading import load_model, load_skeleton
from lorif_core.spec import LayerSpec
from tests.models import batch_of, in_by_out, make_example
from tests.models_sweep.configurations import REFERENCE_IN_FLOAT32, Configuration
from tests.models_sweep.shrinking import VOCAB, small_configuration

TOLERANCE = 1e-4
_LENGTHS = (5, 19, 9, 14)
_PLAIN_TOKENS = VOCAB - 5  # the tokens above may stand for images


@dataclass(slots=True)
class Outcome:
    """What became of a configuration.

    Attributes:
        model_type: model type of transformers.
        variant: what differs from the defaults of the architecture.
        architecture: the model class.
        outcome: `right`, `refused`, or a failure.
        detail: the sentence of a refusal, or what is wrong.
        coverage: share of the parameters whose gradients are tracked.
        layers: how many layers are tracked.
        left_out: groups of parameters that are not tracked.
        error: largest relative error of a layer's gradient.
    """

    model_type: str
    variant: str
    architecture: str
    outcome: Literal["right", "refused", "wrong"] = "right"
    detail: str = ""
    coverage: float | None = None
    layers: int = 0
    left_out: list[str] = field(default_factory=list)
    error: float | None = None

    def as_row(self) -> dict[str, Any]:
        """The outcome for the file of results: what is the same on every machine."""
        row = asdict(self)
        del row["error"]
        return row


def attempt(configuration: Configuration, folder: Path, exclude: str | None = None) -> Outcome:
    """Build, save, load, capture and compare; `exclude` is `model.exclude`.

    Exceptions other than a refusal pass through.
    """
    config = small_configuration(configuration.model_type, configuration.overrides)
    model = random_model(config, configuration.head_gain)
    outcome = Outcome(configuration.model_type, configuration.variant, type(model).__name__)
    if configuration.model_type not in REFERENCE_IN_FLOAT32:
        model.double()
    _save(model, config, folder)
    examples = sample_examples(min(_PLAIN_TOKENS, model.get_input_embeddings().num_embeddings))
    try:
        layers, losses, captured = _capture(_config(folder, exclude), examples, outcome)
    except UserError as refusal:
        outcome.outcome, outcome.detail = "refused", str(refusal).replace(str(folder), "MODEL")
        return outcome
    problems = list(_differences(model, layers, examples, losses, captured, outcome))
    if problems:
        outcome.outcome, outcome.detail = "wrong", "; ".join(problems[:6])
    return outcome


def _save(model: Any, config: PreTrainedConfig, folder: Path) -> None:
    """Save the model in float64, or in float32 if a kernel of transformers has no float64."""
    saved = model
    if any("Experts" in type(module).__name__ for module in model.modules()):
        saved = copy.deepcopy(model).float()  # the fused kernel of experts
    saved.save_pretrained(folder)
    if type(config) is not type(model.config):  # a text model of a larger one, whose configuration is published
        config.dtype = model.config.dtype
        config.save_pretrained(folder)


def random_model(config: PreTrainedConfig, head_gain: float) -> Any:
    """A small model with random weights of which none is trivially zero, in float32.

    The weights of the output head are multiplied by `head_gain`.
    """
    torch.manual_seed(0)
    # transformers' fused kernel of experts has no float64
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, experts_implementation="eager").eval()
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point():
                    _randomise(module, name, parameter)
        if head_gain != 1:
            model.get_output_embeddings().weight.mul_(head_gain)
    return model.requires_grad_(False)


def _randomise(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter) -> None:
    noise = torch.randn_like(parameter)
    if isinstance(module, torch.nn.Embedding):
        parameter.copy_(0.3 * noise)
    elif isinstance(module, torch.nn.Linear) and name == "weight":
        parameter.copy_(noise * 1.5 * parameter.shape[1] ** -0.5)
    elif isinstance(module, Conv1D) and name == "weight":
        parameter.copy_(noise * 1.5 * parameter.shape[0] ** -0.5)
    elif parameter.dim() == 3:
        parameter.copy_(noise * 1.5 * parameter.shape[-1] ** -0.5)
    else:
        parameter.add_(0.1 * noise)


def sample_examples(tokens: int) -> list[Example]:
    """Examples of different lengths with ids below `tokens`; a fifth of their tokens has no loss."""
    rng = np.random.default_rng(0)
    examples = []
    for number, length in enumerate(_LENGTHS):
        ids = rng.integers(0, tokens, length).tolist()
        labels = [-100 if rng.random() < 0.2 else token for token in ids]
        labels[-1] = ids[-1]
        examples.append(make_example(ids, labels, f"x{number}"))
    return examples


def _capture(
    config: Config, examples: list[Example], outcome: Outcome
) -> tuple[tuple[LayerSpec, ...], np.ndarray, list[torch.Tensor]]:
    """The tracked layers, the losses (B,), and per layer the gradients (B, I O), by the product's path."""
    skeleton = load_skeleton(config.model, config.storage)
    spec = make_spec(config, skeleton)
    coverage = covered(tracked_layers(config, skeleton), skeleton)
    outcome.coverage, outcome.layers = round(coverage.share, 4), len(spec.layers)
    outcome.left_out = [name for name, _ in coverage.untracked]
    loaded = load_model(model_config(config, spec), config.storage, "cpu")
    extractor = Extractor(loaded, spec.layers, spec.projection, spec.code)
    extractor.check()
    return spec.layers, *extractor.gradients(batch_of(examples))


def _config(folder: Path, exclude: str | None) -> Config:
    """A build of the model in the folder that stores whole gradients of token ids."""
    return Config.model_validate(
        {
            "model": {"path": str(folder), "layers": "all", "exclude": exclude},
            "corpus": {"uri": "corpus.jsonl", "tokens": "tokens", "max_length": max(_LENGTHS)},
            "index": str(folder / "index"),
            "projection": {"kind": "random", "factor": 1},
            "code": {"kind": "dense", "dtype": "float32"},
        }
    )


def _differences(
    reference: Any,
    layers: tuple[LayerSpec, ...],
    examples: list[Example],
    losses: np.ndarray,
    captured: list[torch.Tensor],
    outcome: Outcome,
) -> list[str]:
    """What is wrong with the captured losses and gradients, one clause each."""
    problems: dict[str, str] = {}
    used: set[str] = set()
    outcome.error = 0.0
    for b, example in enumerate(examples):
        loss, expected = reference_gradients(reference, layers, example)
        if abs(losses[b] - loss) > TOLERANCE * max(1.0, abs(loss)):
            problems["loss"] = f"the loss of {len(example.input_ids)} tokens is {losses[b]:.6f}, not {loss:.6f}"
        total = sum(float(true.norm()) for true in expected if true is not None)
        for layer, gradient, true in zip(layers, captured, expected, strict=True):
            actual = gradient[b].double().view(layer.in_features, layer.out_features)
            if true is None:
                true = torch.zeros_like(actual)
            elif true.any():
                used.add(layer.name)
            size, difference = float(true.norm()), float((actual - true).norm())
            # a gradient may be zero but for rounding, such as that of the router of a single expert
            error = difference / size if size > 1e-12 * total else difference / total * 100
            outcome.error = max(outcome.error, error)
            if not error <= TOLERANCE:
                problems[layer.name] = f"{layer.name} is off by {error:.1e} of a gradient of {size:.1e}"
    for layer in layers:
        if layer.name not in used:
            problems[layer.name] = f"{layer.name} counts as covered and never has a gradient"
    return list(problems.values())


def reference_gradients(
    model: Any, layers: tuple[LayerSpec, ...], example: Example
) -> tuple[float, list[torch.Tensor | None]]:
    """The loss, and dL/dW of each layer as (I, O) or None without any path to the loss, by plain autograd."""
    modules = [tracked_module(model, layer.name) for layer in layers]
    model.requires_grad_(True).zero_grad()
    ids = torch.tensor(example.input_ids[None].astype(np.int64))
    labels = torch.tensor(example.labels[None].astype(np.int64))
    with torch.enable_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum")
        loss.backward()  # not autograd.grad, which finds no gradient behind a reversible layer
    gradients = [module.weight.grad for module in modules]
    return loss.item(), [
        None if gradient is None else in_by_out(module, gradient).double()
        for module, gradient in zip(modules, gradients, strict=True)
    ]
