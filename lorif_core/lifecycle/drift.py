"""How far continued pretraining has moved the gradients of an index's rows, by a sample at the new checkpoint.

The gradient of then is known by its code only. Of an example with the gradient G now, the code kept C and the code
that G has now, the cosine of both gradients is estimated by

    cos(C, G) / cos(code of G, G),

which is 1 at the same checkpoint whatever the code loses, and needs no model of then. What it means for answers is
measured, too: the rank correlation over the sample between scores of old and of new codes, some of its examples
being the queries.

Shapes: B batch, T tokens, D = d1 d2 of a layer, W levels and S scales of a row, Q queries.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.config import Config
from lorif_core.corpus.batches import collate, token_budget_batches
from lorif_core.corpus.tokenise import Example
from lorif_core.curvature.metric import metric_folds
from lorif_core.gradients.capture import GradientCapture
from lorif_core.gradients.codes import CodeLayout, decode_rows, encode
from lorif_core.gradients.extract import Extractor, placements, run_captured, tracked_modules
from lorif_core.gradients.projection import ProjectionSet
from lorif_core.gradients.whitening import KroneckerWhitening
from lorif_core.lifecycle.calibrate import SampledShard, sampled_examples
from lorif_core.lifecycle.index_shard import model_config
from lorif_core.model.loading import check_same_checkpoint, load_model
from lorif_core.search.scoring import fold_queries, score_rows
from lorif_core.spec import CodeSpec, IndexSpec
from lorif_core.tables.store import Store

_QUERIES = 4  # of every part of a sample
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class CheckpointDrift:
    """Sums over sampled rows, and over some of them as queries; sums of several samples add up."""

    rows: int = 0
    cosines: float = 0.0
    queries: int = 0
    correlations: float = 0.0

    def __add__(self, other: "CheckpointDrift") -> "CheckpointDrift":
        return CheckpointDrift(
            self.rows + other.rows,
            self.cosines + other.cosines,
            self.queries + other.queries,
            self.correlations + other.correlations,
        )

    @property
    def cosine(self) -> float:
        """Mean cosine of old and new gradients."""
        return self.cosines / self.rows

    @property
    def correlation(self) -> float | None:
        """Mean rank correlation of the scores; None where too few rows were sampled."""
        return self.correlations / self.queries if self.queries else None


@dataclass(frozen=True, slots=True)
class _Rows:
    """Sampled examples, their codes and scales as they are stored, then as they are now."""

    examples: list[Example]
    stored: tuple[torch.Tensor, torch.Tensor]
    anew: tuple[torch.Tensor, torch.Tensor]


class DriftMeter:
    """Compares stored rows with what a new checkpoint makes of them, with one loaded model.

    Args:
        config: of the update; its model is the new checkpoint.
        spec: of rows at the new checkpoint.
        older: spec of the rows that are measured.
        version: of the factors that has them.
        device: where the model goes; None picks CUDA where there is one.
    """

    def __init__(
        self, config: Config, spec: IndexSpec, older: IndexSpec, version: int, device: str | None = None
    ) -> None:
        self._config, self._older, self._version = config, older, version
        self._store = Store(config.index, config.storage)
        self._loaded = load_model(model_config(config, spec), config.storage, device)
        check_same_checkpoint(config.model, config.storage, self._loaded, spec)
        self._frozen, self._newer = (self._store.covariances.read(of.projection.whitening) for of in (older, spec))
        self._layout = CodeLayout(older.layers, older.code)
        self._sink = DriftSink(self._layout, unbiased=older.projection.kind == "whitened")
        modules = tracked_modules(self._loaded, older.layers)
        whitening = None if self._frozen is None else KroneckerWhitening(self._frozen)
        projections = ProjectionSet(older.layers, older.projection, placements(modules), whitening)
        self._capture = GradientCapture(older.layers, modules, projections, self._sink.take)
        code = CodeSpec("dense", dtype="float32")
        self._dense = Extractor(self._loaded, older.layers, older.projection, code, self._frozen)

    def measure(self, sample: Sequence[SampledShard]) -> CheckpointDrift:
        """Run a sample of shards, and compare."""
        examples = sampled_examples(sample, self._config, self._loaded)
        stored = self._stored([example.example_id for example in examples])
        known = [example for example in examples if example.scored and example.example_id in stored]
        if not known:
            return CheckpointDrift()
        rows, cosines = self._compared(known, stored)
        correlations = self._correlations(rows)
        return CheckpointDrift(len(known), float(cosines.sum()), len(correlations), sum(correlations))

    def _stored(self, example_ids: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        blocks = self._store.rows.of_examples(self._version, self._older.hash, example_ids)
        return {
            example_id: (block.codes[row], block.scales[row])
            for block in blocks
            for row, example_id in enumerate(block.example_ids)
        }

    def _compared(
        self, examples: list[Example], stored: dict[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[_Rows, torch.Tensor]:
        codes, scales = (
            torch.stack(column) for column in zip(*(stored[e.example_id] for e in examples), strict=True)
        )
        anew = torch.zeros(len(examples), self._layout.width), torch.zeros(len(examples), self._layout.scales)
        cosines = torch.zeros(len(examples))
        for indices in self._batches([len(example.input_ids) for example in examples]):
            self._sink.start(codes[indices].to(self._loaded.device), scales[indices].to(self._loaded.device))
            run_captured(self._loaded, self._capture, collate(examples, indices))
            anew[0][indices], anew[1][indices] = self._sink.codes.float().cpu(), self._sink.scales.float().cpu()
            cosines[indices] = self._sink.cosines().float().cpu()
        return _Rows(examples, (codes, scales), anew), cosines

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Token-budget batches of no more rows than may be dense at once."""
        rows = decode_rows(max(layer.dim for layer in self._older.layers))
        for batch in token_budget_batches(lengths, self._config.compute.tokens_per_batch):
            for start in range(0, len(batch), rows):
                yield batch[start : start + rows]

    def _correlations(self, rows: _Rows) -> list[float]:
        """Of some examples as queries, in the metric of the new checkpoint: over all rows but the query's own."""
        count = min(_QUERIES, len(rows.examples))
        if len(rows.examples) < 3:
            return []
        gradients = [self._dense.gradients(collate(rows.examples, [row]))[1] for row in range(count)]
        layers = [torch.cat(layer) for layer in zip(*gradients, strict=True)]
        folded = fold_queries(layers, metric_folds(self._frozen, self._newer, self._older.layers))
        before, after = (score_rows(*codes, self._layout, folded).numpy() for codes in (rows.stored, rows.anew))
        others = [np.arange(len(rows.examples)) != row for row in range(count)]
        return [_rank_correlation(before[row, chosen], after[row, chosen]) for row, chosen in enumerate(others)]


class DriftSink:
    """Takes the pairs of a batch, encodes them, and compares both codes of every example with its gradient.

    Args:
        layout: of the codes.
        unbiased: scale factors so that <G, decoded> = |G|^2 (`factors.encode`).
    """

    def __init__(self, layout: CodeLayout, *, unbiased: bool) -> None:
        self._layout, self._unbiased = layout, unbiased
        self._stored: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        self.codes, self.scales = torch.empty(0), torch.empty(0)
        self._products, self._squares = torch.empty(0), torch.empty(0)

    def start(self, codes: torch.Tensor, scales_BS: torch.Tensor) -> None:
        """Prepare for a batch of examples that have these codes and scales stored."""
        self._stored = codes, scales_BS
        batch, device = len(codes), codes.device
        self.codes = torch.zeros(batch, self._layout.width, device=device)
        self.scales = torch.zeros(batch, self._layout.scales, device=device)
        self._products, self._squares = (torch.zeros(2, batch, dtype=torch.float64, device=device) for _ in "pq")

    def take(self, index: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
        """A pair of one layer, as `GradientCapture` hands it over."""
        slot = self._layout.slots[index]
        encoded = encode(A_BTd, E_BTd, self._layout.code, unbiased=self._unbiased)
        self.codes[:, slot.start : slot.stop] = encoded.codes
        self.scales[:, slot.scales] = encoded.scales
        G_BD = torch.bmm(A_BTd.transpose(1, 2), E_BTd).flatten(1).double()
        for number, (codes, scales) in enumerate((self._stored, (self.codes, self.scales))):
            decoded_BD = self._layout.decode(codes, scales, index).double()
            self._products[number] += (decoded_BD * G_BD).sum(dim=1)
            self._squares[number] += decoded_BD.square().sum(dim=1)

    def cosines(self) -> torch.Tensor:
        """(B,) estimates of the cosine of old and new gradients; 0 for an example without a finite one."""
        cos_stored, cos_anew = self._products / self._squares.sqrt().clamp_min(_TINY)
        return torch.nan_to_num(cos_stored / cos_anew, nan=0.0, posinf=0.0, neginf=0.0).clamp(-1.0, 1.0)


def _rank_correlation(x_N: np.ndarray, y_N: np.ndarray) -> float:
    x, y = (values.argsort().argsort() - (len(values) - 1) / 2 for values in (x_N, y_N))
    return float((x @ y) / (x @ x))
