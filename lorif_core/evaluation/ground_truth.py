"""Ground truth of an evaluation: losses of the queries after training on subsets of the corpus. Resumable.

Every training run writes its losses as one object into the output folder, so a killed evaluation loses only the
unfinished runs. Objects of another recipe, corpus or checkpoint raise an error; results are never mixed.
"""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lorif_core.config import Config, StorageConfig
from lorif_core.errors import UserError
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.evaluation.inputs import digest, load_inputs
from lorif_core.evaluation.lds import Truth, rank_correlation
from lorif_core.evaluation.training_recipe import Recipe, subset, token_summed_losses, train
from lorif_core.storage.filesystem import open_filesystem, storage_errors
from lorif_core.storage.objects import Objects

_FOLDER = "truth"
_HEAD = f"{_FOLDER}/truth.json"


class Trainer:
    """Trains the checkpoint on subsets of the corpus and measures the queries' losses; loads the inputs once.

    Args:
        evaluation: the EVALUATION file.

    Raises:
        UserError: checkpoint, corpus or queries cannot be used.
    """

    def __init__(self, evaluation: EvaluationConfig) -> None:
        self._recipe: Recipe = evaluation.training.recipe()
        self._subsets = evaluation.subsets
        inputs = load_inputs(evaluation)
        self._base, self._tokenizer = inputs.loaded.model, inputs.loaded.tokenizer
        self.examples, self.queries = inputs.examples, inputs.queries

    def losses(self, number: int, seed: int) -> list[float]:
        """Token-summed losses of the queries after training on one subset; the seed determines the order."""
        indices = subset(len(self.examples), self._subsets.share, number)
        model = self.train_copy(indices.tolist(), seed)
        return token_summed_losses(model, self.queries).tolist()

    def save_full_model(self, folder: str, storage: StorageConfig) -> list[float]:
        """Train on the full corpus, save the checkpoint to attribute, and return the losses of the queries."""
        model = self.train_copy(range(len(self.examples)), 0)
        self.save(model, folder, storage)
        return token_summed_losses(model, self.queries).tolist()

    def save(self, model: Any, folder: str, storage: StorageConfig) -> None:
        """Save a checkpoint with its tokenizer."""
        with tempfile.TemporaryDirectory() as name:
            model.save_pretrained(name)
            if self._tokenizer is not None:
                self._tokenizer.save_pretrained(name)
            fs, path = open_filesystem(folder, storage)
            with storage_errors(folder, "write"):
                fs.makedirs(path, exist_ok=True)
                for file in sorted(Path(name).iterdir()):
                    fs.put_file(str(file), f"{path}/{file.name}")

    def identity(self, checkpoint: str) -> dict[str, Any]:
        """Everything that the ground truth depends on: checkpoint, examples, queries, recipe and share."""
        return {
            "checkpoint": checkpoint,
            "examples": digest(self.examples),
            "queries": digest(self.queries),
            "recipe": asdict(self._recipe),
            "share": self._subsets.share,
        }

    def train_copy(self, indices: Sequence[int], seed: int) -> Any:
        """Train a copy of the checkpoint on the examples at these indices; the seed determines the order."""
        model = self.untrained()
        self.train(model, indices, seed)
        return model

    def untrained(self) -> Any:
        """A copy of the checkpoint."""
        return copy.deepcopy(self._base)

    def train(self, model: Any, indices: Sequence[int], seed: int) -> None:
        """Train a model further, in place."""
        train(model, [self.examples[i] for i in indices], self._recipe, seed)


class TruthFolder:
    """The ground truth in the output folder of an evaluation.

    Args:
        out: local folder or object-store URI.
        storage: storage settings of `out`.
    """

    def __init__(self, out: str, storage: StorageConfig) -> None:
        self._out, self._objects = out, Objects(out, storage)

    @property
    def model(self) -> str:
        """Folder of the checkpoint to attribute, which is trained on the full corpus."""
        return f"{self._out.rstrip('/')}/model"

    def begin(self, identity: dict[str, Any], ids: Sequence[str]) -> None:
        """Record the identity and the examples' ids. Raises UserError if the folder has another ground truth."""
        head = self._objects.get(_HEAD)
        if head is None:
            self._objects.put(_HEAD, {"identity": identity, "ids": list(ids)})
        else:
            check_identity(head["identity"], identity, f"{self._out} contains the ground truth")

    def finished_runs(self) -> set[str]:
        """Names of the training runs whose losses are stored."""
        return {Path(entry.name).stem for entry in self._objects.names(_FOLDER)}

    def save_losses(self, run: str, losses: Sequence[float]) -> None:
        """Store the losses of one run."""
        self._objects.put(f"{_FOLDER}/{run}.json", {"losses": list(losses)})

    def ids(self) -> list[str]:
        """Ids of the examples (N)."""
        head = self._objects.get(_HEAD)
        assert head is not None
        return head["ids"]

    def read(self, evaluation: EvaluationConfig) -> tuple[list[str], Truth]:
        """Ids of the examples (N), and the ground truth from all runs of the evaluation."""
        subsets, ids = evaluation.subsets, self.ids()
        members = np.zeros((subsets.count, len(ids)), dtype=bool)
        for number in range(subsets.count):
            members[number, subset(len(ids), subsets.share, number)] = True
        losses = np.array(
            [
                [self._losses(run_name(number, seed)) for number in range(subsets.count)]
                for seed in range(subsets.seeds)
            ]
        )
        agreement = float(rank_correlation(losses[0], losses[1]).mean()) if subsets.seeds > 1 else None
        return ids, Truth(members, losses.mean(axis=0), subsets.seeds, agreement)

    def _losses(self, run: str) -> list[float]:
        stored = self._objects.get(f"{_FOLDER}/{run}.json")
        assert stored is not None
        return stored["losses"]


FULL_RUN = "whole"
"""Name of the training run on the full corpus."""


def run_name(number: int, seed: int) -> str:
    """Name of the training run of one subset and seed."""
    return f"{number:05d}-{seed}"


def run_names(evaluation: EvaluationConfig) -> list[str]:
    """Names of all runs: the full corpus first, then all subsets of each seed."""
    subsets = evaluation.subsets
    numbered = [run_name(number, seed) for seed in range(subsets.seeds) for number in range(subsets.count)]
    return [FULL_RUN, *numbered]


def run_once(trainer: Trainer, folder: TruthFolder, run: str, config: Config) -> None:
    """Train one run and store its losses."""
    if run == FULL_RUN:
        folder.save_losses(run, trainer.save_full_model(folder.model, config.storage))
    else:
        number, seed = run.split("-")
        folder.save_losses(run, trainer.losses(int(number), int(seed)))


def check_identity(stored: dict[str, Any], expected: dict[str, Any], contents: str) -> None:
    """Raise UserError naming the keys in which the stored identity differs from the expected one.

    Args:
        stored: the identity in the folder.
        expected: the identity of this evaluation.
        contents: subject and verb of the message, such as `out contains the ground truth`.
    """
    differing = [key for key, value in expected.items() if stored.get(key) != value]
    if differing:
        raise UserError(f"{contents} of another {' and '.join(differing)}; name another folder")
