"""Dumps what a linear layer's gradient is made of: inputs and output gradients of every layer, for a testbed.

    python -m benchmarks.quality.pairs TESTBED DUMP

TESTBED is the folder of an evaluation whose ground truth has begun, so that TESTBED/out/model exists. The passes
cover its examples, its queries and PLANTS noisy copies of examples. DUMP gets one float16 array a layer and side,
divided by a scale; layers that read the same tensor share its array. Everything that the research modules measure
is then linear algebra on these arrays, without passes of the model.

Shapes: R rows (examples, queries, plants), T tokens of each row, d the size of a side.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quality.finished import testbed_evaluation
from lorif_core.corpus.batches import collate
from lorif_core.corpus.tokenise import Example, make_example
from lorif_core.evaluation.inputs import load_inputs
from lorif_core.gradients.captured_model import CapturedModel
from lorif_core.gradients.projection import counter_generator
from lorif_core.model.layers import layer_specs, select_layers
from lorif_core.spec import ProjectionSpec

PLANTS = 16
_REPLACED = 0.3
_BATCH = 8
_LARGEST = 256.0  # of the first batch, after division by the scale; float16 ends at 65,504


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("testbed", type=Path)
    parser.add_argument("dump", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.dump.mkdir(parents=True)
    dump(arguments.testbed, arguments.dump)


@dataclass(frozen=True)
class Pairs:
    """A dump. `layers` has the names in the order of the model; `examples` and `queries` are counts of rows.

    `planted` are the examples that the plants copy.
    """

    folder: Path
    layers: dict[str, dict[str, Any]]
    examples: int
    queries: int
    planted: list[int]

    def side(self, layer: str, side: str) -> np.ndarray:
        """(R, T, d) float16 memory map of one side, `in` or `out`; multiply by `scale`."""
        array: np.ndarray = np.load(self.folder / self.layers[layer][side]["file"], mmap_mode="r")
        return array

    def features(self, layer: str) -> tuple[int, int]:
        """Input and output size of a layer."""
        return self.side(layer, "in").shape[2], self.side(layer, "out").shape[2]

    def read(self, layer: str, side: str, rows: slice) -> torch.Tensor:
        """(rows, T, d) float32 of one side."""
        values = torch.from_numpy(np.ascontiguousarray(self.side(layer, side)[rows])).float()
        return values * float(self.layers[layer][side]["scale"])

    @property
    def query_rows(self) -> slice:
        """Rows of the queries."""
        return slice(self.examples, self.examples + self.queries)

    @property
    def plant_rows(self) -> slice:
        """Rows of the plants."""
        return slice(self.examples + self.queries, self.examples + self.queries + len(self.planted))


def open_pairs(folder: Path) -> Pairs:
    """A finished dump."""
    head = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    return Pairs(folder, head["layers"], head["examples"], head["queries"], head["planted"])


def dump(testbed: Path, folder: Path) -> None:
    """Run the passes and write the arrays."""
    evaluation = testbed_evaluation(testbed)
    inputs = load_inputs(evaluation, str(testbed / "out" / "model"))
    planted = counter_generator(0, "planted").permutation(len(inputs.examples))[:PLANTS].tolist()
    rows = [*inputs.examples, *inputs.queries, *(noisy_copy(inputs.examples, i) for i in planted)]
    specs = layer_specs(select_layers(inputs.loaded.model), 1)
    writer = _Writer(folder, [spec.name for spec in specs], len(rows))
    model = CapturedModel(inputs.loaded, specs, ProjectionSpec(kind="random", factor=1), writer.take)
    for start in range(0, len(rows), _BATCH):
        indices = list(range(start, min(start + _BATCH, len(rows))))
        model.run(collate(rows, indices))
        writer.write(indices)
    head = {
        "examples": len(inputs.examples), "queries": len(inputs.queries), "planted": planted,
        "layers": writer.layers(),
    }  # fmt: skip
    (folder / "pairs.json").write_text(json.dumps(head, indent=1), encoding="utf-8")


def noisy_copy(examples: Sequence[Example], index: int) -> Example:
    """An example of which some tokens are replaced by the tokens of another one."""
    generator = counter_generator(1, f"noise/{index}")
    other = examples[int(generator.integers(len(examples)))].input_ids
    ids = examples[index].input_ids.copy()
    length = min(len(ids), len(other))
    replaced = np.flatnonzero(generator.random(length) < _REPLACED)
    ids[replaced] = other[replaced]
    return make_example(f"plant{index}", 0, ids, ids, None)


class _Writer:
    """Collects the pairs of a batch and writes each distinct tensor once."""

    def __init__(self, folder: Path, names: Sequence[str], rows: int) -> None:
        self._folder, self._names, self._rows = folder, names, rows
        self._batch: dict[tuple[int, str], torch.Tensor] = {}
        self._sides: dict[tuple[int, str], tuple[str, float]] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def take(self, index: int, A_BTd: torch.Tensor, E_BTd: torch.Tensor) -> None:
        self._batch[index, "in"], self._batch[index, "out"] = A_BTd, E_BTd

    def write(self, rows: Sequence[int]) -> None:
        if not self._sides:
            self._open()
        for key, (file, scale) in self._sides.items():
            if file.startswith(f"{key[0]:03d}"):  # the tensor's own array, not one that it shares
                values = self._batch[key] / scale
                assert float(values.abs().max()) < 6e4
                self._arrays[file][list(rows)] = values.to(torch.float16).numpy()
        self._batch = {}

    def _open(self) -> None:
        owners: dict[int, tuple[str, float]] = {}
        for key, tensor in sorted(self._batch.items()):
            if id(tensor) not in owners:
                file = f"{key[0]:03d}-{key[1]}.npy"
                owners[id(tensor)] = file, float(tensor.abs().max()) / _LARGEST
                shape = (self._rows, *tensor.shape[1:])
                self._arrays[file] = np.lib.format.open_memmap(
                    self._folder / file, mode="w+", dtype=np.float16, shape=shape
                )
            self._sides[key] = owners[id(tensor)]

    def layers(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                side: {"file": self._sides[index, side][0], "scale": self._sides[index, side][1]}
                for side in ("in", "out")
            }
            for index, name in enumerate(self._names)
        }


if __name__ == "__main__":
    main()
