"""What to store of fused experts: exact scores of a small OLMoE and its LDS, next to sketches of its gradients.

    python -m benchmarks.quality.experts FOLDER RESULT.json

Trains an OLMoE of two blocks with 16 experts, four a token, on WikiText-2, and on SUBSETS halves of the examples.
FOLDER keeps the trained model and the losses. Only matrices of experts are scored. Every candidate maps the
neurons of all experts to the same d, so that all take the same bytes:

- `sum`: neurons of all experts are added, as if the experts were one.
- `expert signs`: the same, with a sign of each expert.
- `neuron signs`: a sign of each neuron of each expert, which the product does.
- `both sides`: signs of each expert on the hidden state too. It takes a row for each token and expert.
- `scaled neurons`: `neuron signs` after the division of each neuron by its standard deviation.
- `whitened experts`: `neuron signs` after the whitening of each expert, whose covariances grow with their number.

References, in float64: `exact`, the dot product of all gradients; `K-FAC`, whitened with the covariances of all
neurons; `K-FAC by expert`, whitened with covariances of each expert.

Shapes: N rows (examples and queries), T tokens, E experts, n neurons of one, d projected size.
"""

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import spearmanr
from transformers import OlmoeConfig, OlmoeForCausalLM

from benchmarks.quality.testbed import blocks_of, load_articles
from benchmarks.run_record import write_result
from benchmarks.workload import train_tokenizer
from lorif_core.corpus.batches import collate
from lorif_core.corpus.tokenise import Example, make_example
from lorif_core.evaluation.lds import Truth, lds
from lorif_core.evaluation.training_recipe import Recipe, subset, token_summed_losses, train
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.codes import CodeLayout, encode
from lorif_core.gradients.roots import EPSILON, inverse_root
from lorif_core.gradients.self_check import check_capture
from lorif_core.model.layers import layer_specs, select_layers
from lorif_core.model.loading import LoadedModel, prepare_model
from lorif_core.spec import CodeSpec, LayerSpec, ProjectionSpec

EXPERTS, PER_TOKEN, WIDTH, NEURONS, BLOCKS = 16, 4, 64, 32, 2
EXAMPLES, QUERIES, TOKENS, VOCABULARY = 512, 48, 64, 1024
SUBSETS, SHARE = 50, 0.5
RECIPE = Recipe(epochs=3, learning_rate=2e-3)
SIZES = (32, 64, 256)
RANKS = (4, 16)
BITS = 2048
DRAWS = 4
_BATCH = 16
_DATA = Path("../shared/data/wikitext-2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--text", type=Path, default=_DATA / "valid.txt")
    parser.add_argument("--pretrain", type=Path, default=_DATA / "test.txt")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    examples, queries, others = read_texts(arguments.text, arguments.pretrain)
    base = trained(new_model(), others, arguments.folder / "base.pt")
    truth = ground_truth(base, examples, queries, arguments.folder)
    model = trained(base, examples, arguments.folder / "model.pt")
    layers = capture(prepare_model(model.double()), [*examples, *queries])
    write_result(arguments.result, compare(layers, truth))


def read_texts(text: Path, pretrain: Path) -> tuple[list[Example], list[Example], list[Example]]:
    """Examples, queries, and the texts of the checkpoint that all training begins with."""
    articles, early = load_articles(text), load_articles(pretrain)
    tokenizer = train_tokenizer([*early, *articles], VOCABULARY)

    def blocks(texts: list[str]) -> list[Example]:
        ids = [np.array(block, dtype=np.int32) for text in texts for block in blocks_of(text, tokenizer, TOKENS)]
        order = np.random.default_rng(0).permutation(len(ids))
        return [make_example(str(number), 0, ids[i], ids[i], None) for number, i in enumerate(order)]

    late = blocks(articles)
    return late[:EXAMPLES], late[EXAMPLES : EXAMPLES + QUERIES], blocks(early)[:2048]


def new_model() -> Any:
    torch.manual_seed(0)
    return OlmoeForCausalLM(
        OlmoeConfig(
            vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=NEURONS, num_hidden_layers=BLOCKS,
            num_attention_heads=4, num_key_value_heads=4, num_experts=EXPERTS, num_experts_per_tok=PER_TOKEN,
            max_position_embeddings=TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    )  # fmt: skip


def trained(model: Any, examples: list[Example], path: Path) -> Any:
    """A copy of the model after training, kept at a path."""
    model = copy.deepcopy(model)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval().requires_grad_(False)
    train(model, examples, RECIPE, seed=0)
    torch.save(model.state_dict(), path)
    return model


def ground_truth(base: Any, examples: list[Example], queries: list[Example], folder: Path) -> Truth:
    """Losses of the queries after training on subsets; each is kept as a file."""
    members, losses = np.zeros((SUBSETS, len(examples)), dtype=bool), []
    for number in range(SUBSETS):
        chosen = subset(len(examples), SHARE, number)
        members[number, chosen] = True
        path = folder / f"losses-{number}.npy"
        if not path.exists():
            model = copy.deepcopy(base)
            train(model, [examples[i] for i in chosen], RECIPE, seed=number)
            np.save(path, token_summed_losses(model, queries))
        losses.append(np.load(path))
    return Truth(members, np.stack(losses))


class Layer(NamedTuple):
    """One matrix: inputs and output gradients of all rows, of which `wide` has the neurons of all experts.

    Attributes:
        narrow: (N, T, h) the other side.
        wide: (N, T, E, n).
    """

    narrow: torch.Tensor
    wide: torch.Tensor


def capture(loaded: LoadedModel, rows: list[Example]) -> list[Layer]:
    """All matrices of experts, in float64, after the check against autograd."""
    specs = layer_specs(select_layers(loaded.model, "experts"), 1)
    sides: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in specs]
    model = CapturedModel(loaded, specs, ProjectionSpec(factor=1), lambda i, A, E: sides[i].append((A, E)))
    check_capture(model)
    for start in range(0, len(rows), _BATCH):
        model.run(collate(rows, list(range(start, min(start + _BATCH, len(rows))))))
    return [layer_of(spec, pairs) for spec, pairs in zip(specs, sides, strict=True)]


def layer_of(spec: LayerSpec, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> Layer:
    A, E = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    narrow, wide = (E, A) if "down" in spec.name else (A, E)
    return Layer(narrow, wide.unflatten(2, (EXPERTS, -1)))


def signs(draw: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw * 1000 + shape[-1])
    return torch.randint(0, 2, shape, generator=generator).double() * 2 - 1


def folded(wide_NTEn: torch.Tensor, size: int) -> torch.Tensor:
    """(N, T, size): neuron j in bucket j mod size; for size > n those of expert e in group e mod (size / n)."""
    n = wide_NTEn.shape[3]
    if size > n:
        return wide_NTEn.unflatten(2, (-1, size // n)).sum(dim=2).flatten(2)
    return wide_NTEn.sum(dim=2).unflatten(2, (-1, size)).sum(dim=2)


Pair = tuple[torch.Tensor, torch.Tensor]
"""Both sides of a candidate, (N, rows, h) and (N, rows, d)."""


def summed(layer: Layer, draw: int, size: int) -> Pair:
    return layer.narrow, folded(layer.wide * signs(draw, layer.wide.shape[3]), size)


def expert_signs(layer: Layer, draw: int, size: int) -> Pair:
    return summed(Layer(layer.narrow, layer.wide * signs(draw, EXPERTS, 1)), draw, size)


def neuron_signs(layer: Layer, draw: int, size: int) -> Pair:
    return layer.narrow, folded(layer.wide * signs(draw, EXPERTS, layer.wide.shape[3]), size)


def scaled_neurons(layer: Layer, draw: int, size: int) -> Pair:
    variance = layer.wide[:EXAMPLES].square().mean(dim=(0, 1))
    scale = (variance + EPSILON * variance.mean()).rsqrt()
    return neuron_signs(Layer(layer.narrow, layer.wide * scale), draw, size)


def whitened_experts(layer: Layer, draw: int, size: int) -> Pair:
    mean = float(layer.wide[:EXAMPLES].square().mean())
    eye = torch.eye(layer.wide.shape[3]).double()
    roots = [inverse_root(moment(layer.wide[:, :, e]) + EPSILON * mean * eye, 0.0) for e in range(EXPERTS)]
    return neuron_signs(
        Layer(layer.narrow, torch.einsum("nted,edf->ntef", layer.wide, torch.stack(roots))), draw, size
    )


def both_sides(layer: Layer, draw: int, size: int) -> Pair:
    """Rows of the experts that a token uses; those that it does not use are zero and may be left out."""
    used = layer.wide.abs().sum(dim=3).topk(PER_TOKEN, dim=2).indices
    n = layer.wide.shape[3]
    wide = (layer.wide * signs(draw, EXPERTS, n)).gather(2, used[..., None].expand(*used.shape, n))
    if size > n:
        wide = wide[..., None, :] * torch.nn.functional.one_hot(used % (size // n), size // n)[..., None]
        wide = wide.flatten(3)
    else:
        wide = wide.unflatten(3, (-1, size)).sum(dim=3)
    narrow = layer.narrow[:, :, None] * signs(draw + 500, EXPERTS, layer.narrow.shape[2])[used]
    return narrow.flatten(1, 2), wide.flatten(1, 2)


CANDIDATES: dict[str, Callable[[Layer, int, int], Pair]] = {
    "sum": summed, "expert signs": expert_signs, "neuron signs": neuron_signs, "both sides": both_sides,
    "scaled neurons": scaled_neurons, "whitened experts": whitened_experts,
}  # fmt: skip


def moment(x: torch.Tensor) -> torch.Tensor:
    rows = x[:EXAMPLES].flatten(0, -2)
    return rows.T @ rows / (EXAMPLES * TOKENS)


def dots(gradients: torch.Tensor) -> np.ndarray:
    """(queries, examples) scores of gradients (N, ...)."""
    flat = gradients.flatten(1)
    scores: np.ndarray = (flat[EXAMPLES:] @ flat[:EXAMPLES].T).numpy()
    return scores


def candidate_scores(pair: Pair, ranks: Sequence[int]) -> dict[str, np.ndarray]:
    """Scores of a candidate, plain and whitened, and those of whitened codes by rank."""
    A, E = pair
    G = A.transpose(1, 2) @ E
    roots = inverse_root(moment(A)), inverse_root(moment(E))
    whitened = roots[0] @ G @ roots[1]
    scores = {"plain": dots(G), "whitened": dots(whitened)}
    for rank in ranks:
        code = CodeSpec("cut", rank, "sign")
        layout = CodeLayout([LayerSpec("", *whitened.shape[1:], *whitened.shape[1:])], code)
        encoded = encode(A[:EXAMPLES].float(), E[:EXAMPLES].float(), code, unbiased=True,
                         roots=[(roots[0].float(), roots[1].float())])  # fmt: skip
        decoded = layout.decode(encoded.codes, encoded.scales, 0).double()
        scores[f"whitened, cut of rank {rank}"] = dots(torch.cat([decoded, whitened[EXAMPLES:].flatten(1)]))
    return scores


def reference_scores(layer: Layer) -> dict[str, np.ndarray]:
    G = torch.einsum("nth,nted->nehd", layer.narrow, layer.wide)
    E, d = layer.wide.shape[2:]
    left, right = inverse_root(moment(layer.narrow)), inverse_root(moment(layer.wide.flatten(2)))
    together = left @ (G.transpose(1, 2).flatten(2) @ right)
    mean = float(moment(layer.wide.flatten(2)).diagonal().mean())
    by_expert = torch.zeros_like(G)
    for e in range(E):
        used = layer.wide[:, :, e].abs().sum(dim=2) > 0
        share = float(used[:EXAMPLES].double().mean()) or 1.0
        S = moment(layer.wide[:, :, e])
        S_root = inverse_root(S + EPSILON * mean * torch.eye(d).double(), 0.0)
        by_expert[:, e] = inverse_root(moment(layer.narrow * used[..., None]) / share) @ G[:, e] @ S_root
    return {"exact": dots(G), "K-FAC": dots(together), "K-FAC by expert": dots(by_expert)}


def compare(layers: list[Layer], truth: Truth) -> dict[str, Any]:
    """LDS of references and candidates, and the mean Spearman correlation of their scores; mean over draws."""
    references = total(reference_scores(layer) for layer in layers)
    rows = {name: measure(scores, references, truth) for name, scores in references.items()}
    for size in SIZES:
        for name, candidate in CANDIDATES.items():
            draws = [
                total(candidate_scores(candidate(layer, draw, size), () if draw else RANKS) for layer in layers)
                for draw in range(DRAWS)
            ]
            for kind in draws[0]:
                measured = [measure(draw[kind], references, truth) for draw in draws if kind in draw]
                rows[f"{name}, {size}, {kind}"] = {
                    key: round(float(np.mean([row[key] for row in measured])), 4) for key in measured[0]
                }
    return {
        "model": {
            "experts": EXPERTS,
            "per token": PER_TOKEN,
            "blocks": BLOCKS,
            "width": WIDTH,
            "neurons": NEURONS,
        },
        "subsets": SUBSETS,
        "methods": rows,
        "neuron signs, cut of about 2048 bits a matrix": {
            str(size): equal_bits(layers, size, references, truth) for size in (32, 64, 128, 256, 512)
        },
    }


def equal_bits(
    layers: list[Layer], size: int, references: dict[str, np.ndarray], truth: Truth
) -> dict[str, float]:
    """Scores of codes of BITS bits, mean over draws, and their rank."""
    rank = min(round(BITS / (WIDTH + size)), size, WIDTH)
    kind = f"whitened, cut of rank {rank}"
    draws = [
        total(candidate_scores(neuron_signs(layer, draw, size), [rank]) for layer in layers)[kind]
        for draw in range(DRAWS)
    ]
    measured = [measure(scores, references, truth) for scores in draws]
    return {"rank": rank, **{key: round(float(np.mean([row[key] for row in measured])), 4) for key in measured[0]}}


def total(parts: Iterator[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Sums of scores over layers."""
    sums: dict[str, np.ndarray] = {}
    for part in parts:
        for name, scores in part.items():
            sums[name] = sums.get(name, np.zeros_like(scores)) + scores
    return sums


def measure(scores: np.ndarray, references: dict[str, np.ndarray], truth: Truth) -> dict[str, float]:
    """LDS, and the agreement with the references."""
    return {
        "lds": round(float(lds(scores, truth).mean()), 4),
        **{f"with {name}": agreement(scores, others) for name, others in references.items()},
    }


def agreement(x_QN: np.ndarray, y_QN: np.ndarray) -> float:
    """Spearman correlation over examples, mean over queries."""
    return round(float(np.mean([spearmanr(x, y).statistic for x, y in zip(x_QN, y_QN, strict=True)])), 4)


if __name__ == "__main__":
    main()
