"""Ground truth of an evaluation: what training on subsets of the corpus does to the losses of queries. Resumable.

Every training run is a small object of its own in the output folder, so a run that is killed costs what was in
flight. The objects of another recipe, corpus or checkpoint are refused, never mixed in.
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
from lorif_core.evaluation.inputs import digest, load_material
from lorif_core.evaluation.lds import Truth, rank_correlation
from lorif_core.evaluation.training_recipe import Recipe, subset, token_summed_losses, train
from lorif_core.storage.filesystem import contact, open_filesystem
from lorif_core.storage.objects import Objects

_FOLDER = "truth"
_HEAD = f"{_FOLDER}/truth.json"


class Trainer:
    """Trains the checkpoint on subsets of the corpus and takes the queries' losses; loads everything once.

    Args:
        evaluation: what to train and on what.

    Raises:
        UserError: checkpoint, corpus or queries are not what they should be.
    """

    def __init__(self, evaluation: EvaluationConfig) -> None:
        self._recipe: Recipe = evaluation.training.recipe()
        self._subsets = evaluation.subsets
        material = load_material(evaluation)
        self._base, self._tokenizer = material.loaded.model, material.loaded.tokenizer
        self.examples, self.queries = material.examples, material.queries

    def losses(self, number: int, seed: int) -> list[float]:
        """Token-summed losses of the queries after training on one subset, in an order drawn from a seed."""
        chosen = subset(len(self.examples), self._subsets.share, number)
        model = self.trained(chosen.tolist(), seed)
        return token_summed_losses(model, self.queries).tolist()

    def save_whole(self, folder: str, storage: StorageConfig) -> list[float]:
        """Train on the whole corpus and save the checkpoint that is attributed; losses of the queries."""
        model = self.trained(range(len(self.examples)), 0)
        self.save(model, folder, storage)
        return token_summed_losses(model, self.queries).tolist()

    def save(self, model: Any, folder: str, storage: StorageConfig) -> None:
        """Save a checkpoint with its tokenizer."""
        with tempfile.TemporaryDirectory() as name:
            model.save_pretrained(name)
            if self._tokenizer is not None:
                self._tokenizer.save_pretrained(name)
            fs, path = open_filesystem(folder, storage)
            with contact(folder, "write"):
                fs.makedirs(path, exist_ok=True)
                for file in sorted(Path(name).iterdir()):
                    fs.put_file(str(file), f"{path}/{file.name}")

    def identity(self, checkpoint: str) -> dict[str, Any]:
        """What the ground truth is of: equal for equal checkpoint, examples, queries, recipe and share."""
        return {
            "checkpoint": checkpoint,
            "examples": digest(self.examples),
            "queries": digest(self.queries),
            "recipe": asdict(self._recipe),
            "share": self._subsets.share,
        }

    def trained(self, chosen: Sequence[int], seed: int) -> Any:
        """A copy of the checkpoint, trained on examples by their positions, in an order drawn from the seed."""
        model = copy.deepcopy(self._base)
        self.train(model, chosen, seed)
        return model

    def train(self, model: Any, chosen: Sequence[int], seed: int) -> None:
        """Train a model further, in place."""
        train(model, [self.examples[i] for i in chosen], self._recipe, seed)


class TruthFolder:
    """The ground truth that is kept in the output folder of an evaluation.

    Args:
        out: local folder or object-store URI.
        storage: where it is.
    """

    def __init__(self, out: str, storage: StorageConfig) -> None:
        self._out, self._objects = out, Objects(out, storage)

    @property
    def model(self) -> str:
        """The checkpoint that is attributed: trained on the whole corpus."""
        return f"{self._out.rstrip('/')}/model"

    def begin(self, identity: dict[str, Any], ids: Sequence[str]) -> None:
        """Note what the truth is of and the examples' ids. Raises UserError if another one is there."""
        found = self._objects.get(_HEAD)
        if found is None:
            self._objects.put(_HEAD, {"identity": identity, "ids": list(ids)})
        else:
            refuse_other(found["identity"], identity, f"{self._out} holds the ground truth")

    def done(self) -> set[str]:
        """Names of the training runs that are kept."""
        return {Path(entry.name).stem for entry in self._objects.names(_FOLDER)}

    def keep(self, run: str, losses: Sequence[float]) -> None:
        """Keep the losses of one run."""
        self._objects.put(f"{_FOLDER}/{run}.json", {"losses": list(losses)})

    def ids(self) -> list[str]:
        """Ids of the examples (N)."""
        head = self._objects.get(_HEAD)
        assert head is not None
        return head["ids"]

    def read(self, evaluation: EvaluationConfig) -> tuple[list[str], Truth]:
        """Ids of the examples (N) and the truth of all runs that the evaluation asks for."""
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
        found = self._objects.get(f"{_FOLDER}/{run}.json")
        assert found is not None
        return found["losses"]


WHOLE = "whole"


def run_name(number: int, seed: int) -> str:
    """Name of a training run."""
    return f"{number:05d}-{seed}"


def runs(evaluation: EvaluationConfig) -> list[str]:
    """All runs, seed after seed; the whole corpus first."""
    subsets = evaluation.subsets
    numbered = [run_name(number, seed) for seed in range(subsets.seeds) for number in range(subsets.count)]
    return [WHOLE, *numbered]


def run_once(trainer: Trainer, folder: TruthFolder, run: str, config: Config) -> None:
    """Train one run and keep its losses."""
    if run == WHOLE:
        folder.keep(run, trainer.save_whole(folder.model, config.storage))
    else:
        number, seed = run.split("-")
        folder.keep(run, trainer.losses(int(number), int(seed)))


def refuse_other(found: dict[str, Any], wanted: dict[str, Any], holds: str) -> None:
    """Raise UserError naming the keys in which an identity that is there differs from the one that is wanted."""
    differing = [key for key, value in wanted.items() if found.get(key) != value]
    if differing:
        raise UserError(f"{holds} of another {' and '.join(differing)}; name another folder")
