"""How far continued pretraining has moved the gradients of an index's rows, by a sample at the new checkpoint.

The index stores only the code of an old gradient. Let C be the stored code of an example, and G its gradient at
the new checkpoint. The cosine of the old and the new gradient is estimated by

    cos(C, G) / cos(code of G, G).

At an unchanged checkpoint this is 1, however lossy the code is, and it does not need the old model. The effect on
answers is measured, too: some examples of the sample serve as queries, and the scores of old and of new codes are
compared by their rank correlation over the sample.

Shapes: B batch, T tokens, D = d1 d2 of a layer, W levels and S scales of a row, Q queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lorif_core.config import Config
from lorif_core.corpus.batches import collate
from lorif_core.corpus.tokenise import Example
from lorif_core.curvature.metric import exact_metric, metric_folds
from lorif_core.gradients.captured_model import CapturedModel, layer_roots
from lorif_core.gradients.codes import CodeLayout, decode_rows, encode
from lorif_core.gradients.extract import Extractor
from lorif_core.gradients.self_check import check_capture
from lorif_core.gradients.whitened_product import LayerRoots, whitened_tokens
from lorif_core.lifecycle.calibrate import SampledShard, read_sample
from lorif_core.lifecycle.index_shard import model_config, token_budget
from lorif_core.model.loading import check_same_checkpoint, load_model
from lorif_core.model.transfer import HostCopy
from lorif_core.search.scoring import fold_queries, score_rows
from lorif_core.spec import CodeSpec, IndexSpec
from lorif_core.tables.store import Store

_QUERIES = 4  # examples of each call of `measure` that serve as queries
_TINY = 1e-30


@dataclass(frozen=True, slots=True)
class CheckpointDrift:
    """Sums over the sampled rows and over the queries among them; the sums of several samples can be added."""

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
        """Mean estimated cosine of the old and new gradients."""
        return self.cosines / self.rows

    @property
    def correlation(self) -> float | None:
        """Mean rank correlation of the scores; None if too few rows were sampled."""
        return self.correlations / self.queries if self.queries else None


@dataclass(frozen=True, slots=True)
class _SampledRows:
    """Sampled examples, and their (codes, scales): as stored, and as recomputed at the new checkpoint."""

    examples: list[Example]
    stored: tuple[torch.Tensor, torch.Tensor]
    recomputed: tuple[torch.Tensor, torch.Tensor]


class DriftMeter:
    """Recomputes stored rows at a new checkpoint and compares them, with one loaded model.

    Args:
        config: configuration of the update; its model is the new checkpoint.
        spec: spec of rows at the new checkpoint.
        older: spec of the rows to measure.
        version: version of `factors` that contains them.
        device: device of the model; None selects CUDA if it is available.
    """

    def __init__(
        self, config: Config, spec: IndexSpec, older: IndexSpec, version: int, device: str | None = None
    ) -> None:
        self._config, self._older, self._version = config, older, version
        self._store = Store(config.index, config.storage)
        self._loaded = load_model(model_config(config, spec), config.storage, device)
        check_same_checkpoint(config.model, config.storage, self._loaded, spec)
        frozen, newer = (self._store.whitenings.roots(of.projection.whitening) for of in (older, spec))
        self._metric = None if frozen is None or newer is None else exact_metric(frozen, newer)
        self._layout = CodeLayout(older.layers, older.code)
        roots = layer_roots(self._loaded, older.layers, older.projection, frozen)
        scales = self._store.scales.read(older.projection)
        self._sink = DriftSink(self._layout, unbiased=older.projection.has_metric, roots=roots)
        self._model = CapturedModel(self._loaded, older.layers, older.projection, self._sink.take, frozen, scales)
        check_capture(self._model)
        self._budget = token_budget(config, self._loaded)
        code = CodeSpec("dense", dtype="float32")
        self._dense = Extractor(self._loaded, older.layers, older.projection, code, frozen, scales)

    def measure(self, sample: Sequence[SampledShard]) -> CheckpointDrift:
        """The drift of a sample; examples that are not in the index are ignored."""
        examples = read_sample(sample, self._config, self._loaded)
        stored = self._read_stored([example.example_id for example in examples])
        indexed = [example for example in examples if example.scored and example.example_id in stored]
        if not indexed:
            return CheckpointDrift()
        rows, cosines = self._recompute(indexed, stored)
        correlations = self._correlations(rows)
        return CheckpointDrift(len(indexed), float(cosines.sum()), len(correlations), sum(correlations))

    def _read_stored(self, example_ids: Sequence[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """(codes, scales) of the examples that the index contains, by id."""
        blocks = self._store.rows.of_examples(self._version, self._older.hash, example_ids)
        return {
            example_id: (block.codes[row], block.scales[row])
            for block in blocks
            for row, example_id in enumerate(block.example_ids)
        }

    def _recompute(
        self, examples: list[Example], stored: dict[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[_SampledRows, torch.Tensor]:
        """The examples with stored and recomputed codes, and (N,) estimated cosines of their gradients."""
        codes, scales = (
            torch.stack(column) for column in zip(*(stored[e.example_id] for e in examples), strict=True)
        )
        new_codes = torch.zeros(len(examples), self._layout.width)
        new_scales = torch.zeros(len(examples), self._layout.scales)
        cosines = torch.zeros(len(examples))

        def run(indices: list[int]) -> None:
            self._sink.start(codes[indices].to(self._loaded.device), scales[indices].to(self._loaded.device))
            self._model.run(collate(examples, indices))
            parts = self._sink.codes, self._sink.scales, self._sink.cosines()[:, None]
            joined = HostCopy(torch.cat([part.float() for part in parts], dim=1)).wait()
            new_codes[indices], new_scales[indices], cosine = joined.split(
                [self._layout.width, self._layout.scales, 1], dim=1
            )
            cosines[indices] = cosine[:, 0]

        # decoded to dense gradients, all rows of a batch at once
        most_rows = decode_rows(max(layer.dim for layer in self._older.layers))
        self._budget.run([len(example.input_ids) for example in examples], run, most_rows=most_rows)
        return _SampledRows(examples, (codes, scales), (new_codes, new_scales)), cosines

    def _correlations(self, rows: _SampledRows) -> list[float]:
        """Rank correlation of old and new scores per query, in the metric of the new checkpoint.

        The first examples serve as queries. The row of the query itself does not count.
        """
        count = min(_QUERIES, len(rows.examples))
        if len(rows.examples) < 3:
            return []
        gradients = [self._dense.gradients(collate(rows.examples, [row]))[1] for row in range(count)]
        layers = [torch.cat(layer) for layer in zip(*gradients, strict=True)]
        folded = fold_queries(layers, metric_folds(self._metric, self._older.layers))
        before_QN = score_rows(*rows.stored, self._layout, folded).numpy()
        after_QN = score_rows(*rows.recomputed, self._layout, folded).numpy()
        others = [np.arange(len(rows.examples)) != row for row in range(count)]
        return [_rank_correlation(before_QN[row, mask], after_QN[row, mask]) for row, mask in enumerate(others)]


class DriftSink:
    """Encodes the captured pairs of a batch, and compares both codes of every example with its gradient.

    Args:
        layout: layout of the codes.
        unbiased: scale factors so that <G, decoded> = |G|^2 (`codes.encode`).
        roots: per layer the whitening that the pairs do not have yet; None if they have it or need none.
    """

    def __init__(self, layout: CodeLayout, *, unbiased: bool, roots: Sequence[LayerRoots] | None = None) -> None:
        self._layout, self._unbiased, self._roots = layout, unbiased, roots
        self._stored: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))
        self.codes, self.scales = torch.empty(0), torch.empty(0)
        self._products, self._squares = torch.empty(0), torch.empty(0)

    def start(self, codes: torch.Tensor, scales_BS: torch.Tensor) -> None:
        """Start a batch of examples, given their stored codes and scales."""
        self._stored = codes, scales_BS
        batch, device = len(codes), codes.device
        self.codes = torch.zeros(batch, self._layout.width, device=device)
        self.scales = torch.zeros(batch, self._layout.scales, device=device)
        self._products, self._squares = (torch.zeros(2, batch, dtype=torch.float64, device=device) for _ in "pq")

    def take(self, index: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
        """Add the pair of one layer, as a callback of `GradientCapture`."""
        slot = self._layout.slots[index]
        if self._roots is not None:
            A_BTd, E_BTd = whitened_tokens(A_BTd, E_BTd, [self._roots[index]])
        encoded = encode(A_BTd, E_BTd, self._layout.code, unbiased=self._unbiased)
        self.codes[:, slot.start : slot.stop] = encoded.codes
        self.scales[:, slot.scales] = encoded.scales
        G_BD = torch.bmm(A_BTd.transpose(1, 2), E_BTd).flatten(1)
        G_BD = G_BD.double().to(self.codes.device)  # the layers of a model may be on several
        for number, (codes, scales) in enumerate((self._stored, (self.codes, self.scales))):
            decoded_BD = self._layout.decode(codes, scales, index).double()
            self._products[number] += (decoded_BD * G_BD).sum(dim=1)
            self._squares[number] += decoded_BD.square().sum(dim=1)

    def cosines(self) -> torch.Tensor:
        """(B,) estimated cosines of the old and new gradients; 0 where the estimate is not finite."""
        cos_stored, cos_recomputed = self._products / self._squares.sqrt().clamp_min(_TINY)
        return torch.nan_to_num(cos_stored / cos_recomputed, nan=0.0, posinf=0.0, neginf=0.0).clamp(-1.0, 1.0)


def _rank_correlation(x_N: np.ndarray, y_N: np.ndarray) -> float:
    x, y = (values.argsort().argsort() - (len(values) - 1) / 2 for values in (x_N, y_N))
    return float((x @ y) / (x @ x))
