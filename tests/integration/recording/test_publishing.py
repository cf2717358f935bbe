"""Invariant: a published recording is an index like any other: it is asked, filtered, updated and taken down."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoModelForCausalLM

import lorif_core as lc
from flows.commands.maintenance import run_status
from flows.tables import generations_table
from flows.update import update
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.errors import MemoryExhaustedError, UserError
from lorif_core.gradients.codes import CodeLayout
from lorif_core.lifecycle.local_build import build_here
from lorif_core.lifecycle.removal import rows_with_ids
from lorif_core.lifecycle.waves import Waves
from lorif_core.recording import recorded_shards
from lorif_core.recording.publishing import publish_recording
from lorif_core.storage.lease import hold_lease
from lorif_core.tables.store import Store
from tests.integration.growing import codes_of, metadata_of
from tests.tiny_tokenizer import byte_tokenizer

ROWS = 40
SETTINGS: dict[str, Any] = {"model": {"layers": "all"}, "projection": {"calibration_examples": 16}}
COLUMNS = {"id": "id", "max_length": 64}


@pytest.fixture
def corpus(tmp_path: Path, corpus_file: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(corpus_file.read_text().splitlines(keepends=True)[20 : 20 + ROWS]))
    return path


def load(folder: Path) -> Any:
    """The tiny model without dropout, in training mode."""
    model = AutoModelForCausalLM.from_pretrained(folder, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    return model.train()


def batches_of(corpus: Path, size: int = 4) -> list[dict[str, torch.Tensor]]:
    """Padded batches of the corpus."""
    import json

    tokenizer = byte_tokenizer()
    tokens = [tokenizer(json.loads(line)["text"])["input_ids"] for line in corpus.read_text().splitlines()]
    batches = []
    for start in range(0, len(tokens), size):
        rows = [torch.tensor(row) for row in tokens[start : start + size]]
        pad = torch.nn.utils.rnn.pad_sequence
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
        labels = pad(rows, batch_first=True, padding_value=-100)
        batches.append({"input_ids": pad(rows, batch_first=True), "attention_mask": mask, "labels": labels})
    return batches


def train(model: Any, batches: Sequence[dict[str, torch.Tensor]], rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def record_training(
    tmp_path: Path, model_folder: Path, corpus: Path, rate: float = 1e-4, epochs: int = 2, **settings: Any
) -> Config:
    """Record a training, and the CONFIG with which its index is updated."""
    index, trained, columns = tmp_path / "index", tmp_path / "trained", {**COLUMNS}
    model = load(model_folder)
    chosen = {**SETTINGS, **settings}
    with lc.record(model, index, checkpoint=trained, corpus=corpus, columns=columns, **chosen) as recorder:
        train(model, batches_of(corpus) * epochs, rate)
        model.save_pretrained(trained)
        byte_tokenizer().save_pretrained(trained)
    assert recorder.stopped is None
    raw = {key: value for key, value in chosen.items() if key not in ("sightings", "begin")}
    raw["model"] = {**raw["model"], "path": str(trained)}
    raw |= {"index": str(index), "corpus": {"uri": str(corpus), **columns}, "compute": {"workers": 1}}
    return parse_config(raw)


def scores_by_id(index: str, queries: Sequence[str]) -> dict[str, np.ndarray]:
    ids, scores = lc.open_index(index).scores(list(queries))
    return dict(zip(ids, scores.T, strict=True))


QUERIES = ["the cat sees the dog", "an old tree and a bird"]


@pytest.mark.parametrize("sightings", ["last", "mean", "each"])
def test_answers_are_near_those_of_a_build_after_the_training(
    sightings: str, tmp_path: Path, model_folder: Path, corpus: Path
) -> None:
    config = record_training(tmp_path, model_folder, corpus, rate=1e-7, sightings=sightings)
    generation = Store(config.index).latest()
    assert generation.rows == ROWS
    recorded = generation.changes["recorded"]
    assert recorded["steps"] == [5, 20] and recorded["missing"] == 0
    assert [part.follows is not None for part in generation.parts] == [True, False]
    (run_row,) = run_status(config.index, []).data["generations"]
    assert run_row["changes"]["recorded"] == recorded
    built = config.model_copy(update={"index": str(tmp_path / "built")})
    build_here(built)
    mine, theirs = scores_by_id(config.index, QUERIES), scores_by_id(built.index, QUERIES)
    assert metadata_of(config) == metadata_of(built)
    rank = Store(config.index).latest().index_spec.code.rank
    assert rank == (16 if sightings == "each" else 8), "each keeps the terms of two rows"
    for query in range(len(QUERIES)):
        values = [[scores[name][query] for name in sorted(mine)] for scores in (mine, theirs)]
        assert spearmanr(*values).statistic > 0.8
    assert len(lc.open_index(config.index).query("the cat sees", k=3).proponents) == 3


def test_a_row_knows_its_step(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    config = record_training(tmp_path, model_folder, corpus)
    assert checkpoints_of(config) == {row: f"step-{11 + row // 4}" for row in range(ROWS)}
    each = record_training(tmp_path / "each", model_folder, corpus, sightings="each")
    both = {row: f"steps-{1 + row // 4},{11 + row // 4}" for row in range(16, ROWS)}
    assert checkpoints_of(each) == {row: f"step-{11 + row // 4}" for row in range(16)} | both
    again = record_training(tmp_path / "each", model_folder, corpus, sightings="each", epochs=3)
    assert Store(again.index).latest().index_spec.code.rank == 16, "a later training takes the room there is"


def test_publishing_goes_on_after_it_was_killed(
    tmp_path: Path, model_folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = record_training(tmp_path / "calm", model_folder, corpus)
    for place in ("commit", "rest"):
        with monkeypatch.context() as patch:
            patch.setattr(Waves, place, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                record_training(tmp_path / place, model_folder, corpus)
        generation = publish_recording(str(tmp_path / place / "index"), str(tmp_path / place / "trained"))
        config = undisturbed.model_copy(update={"index": str(tmp_path / place / "index")})
        assert generation.rows == ROWS and codes_of(config) == codes_of(undisturbed)


def test_a_training_with_wrapped_blocks_is_published(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    index, trained, model = tmp_path / "index", tmp_path / "trained", load(model_folder)
    model.config.use_cache = False
    model.transformer.h = torch.nn.ModuleList(checkpoint_wrapper(block) for block in model.transformer.h)
    with lc.record(model, index, checkpoint=trained, corpus=corpus, columns=COLUMNS, **SETTINGS):
        train(model, batches_of(corpus) * 2, 1e-4)
        model.save_pretrained(trained)
        byte_tokenizer().save_pretrained(trained)
    assert Store(str(index)).latest().rows == ROWS


def test_another_corpus_than_the_one_in_training_is_refused(
    tmp_path: Path, model_folder: Path, corpus: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"id": "x", "text": "something else"}\n')
    index, trained, model = tmp_path / "index", tmp_path / "trained", load(model_folder)
    with (
        pytest.raises(UserError, match=r"none of the 40 examples that training saw has the tokens"),
        lc.record(model, index, checkpoint=trained, corpus=other, columns=COLUMNS, **SETTINGS),
    ):
        train(model, batches_of(corpus) * 2, 1e-4)
        model.save_pretrained(trained)
        byte_tokenizer().save_pretrained(trained)


def test_ids_in_the_batch_make_a_corpus(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    index, trained, model = tmp_path / "index", tmp_path / "trained", load(model_folder)
    batches = batches_of(corpus) * 2
    for number, batch in enumerate(batches):
        batch["lorif_ids"] = [f"doc {4 * (number % 10) + row}" for row in range(4)]  # type: ignore[assignment]
    with lc.record(model, index, checkpoint=trained, ids="doc", **SETTINGS):
        train(model, batches, 1e-4)
        model.save_pretrained(trained)
        byte_tokenizer().save_pretrained(trained)
    opened = lc.open_index(index)
    ids, _ = opened.scores(["the cat"])
    assert sorted(ids) == sorted(f"doc {number}" for number in range(ROWS))
    assert opened.query("the cat").proponents[0].text


def checkpoints_of(config: Config) -> dict[int, str]:
    """Row of the corpus -> column `checkpoint`, without the training."""
    store = Store(config.index)
    batches = store.rows.metadata(store.latest().factors_version, ["row", "checkpoint"])
    return {row["row"]: row["checkpoint"].partition("/")[2] for batch in batches for row in batch.to_pylist()}


def decoded(config: Config) -> dict[str, torch.Tensor]:
    """example_id -> what its code decodes to."""
    store = Store(config.index)
    spec, rows = store.latest().index_spec, dict[str, torch.Tensor]()
    layout = CodeLayout(spec.layers, spec.code)
    for block in store.rows.scan(store.latest().factors_version, 500):
        layers = [layout.decode(block.codes, block.scales, layer) for layer in range(len(spec.layers))]
        rows.update(zip(block.example_ids, torch.cat(layers, dim=1), strict=True))
    return rows


EARLY = range(24)  # rows of two steps of warm-up and four that make the whitening


def record_one_epoch(tmp_path: Path, model_folder: Path, corpus: Path, **settings: Any) -> Config:
    return record_training(tmp_path, model_folder, corpus, 0.0, 1, begin=2, **settings)


def test_one_epoch_gives_every_example_a_row(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    exact = {"code": {"kind": "rank", "rank": 4, "dtype": "float32"}}
    config = record_one_epoch(tmp_path, model_folder, corpus, **exact)
    assert Store(config.index).latest().changes["recorded"]["missing"] == 0
    expected = {row: "end" if row in EARLY else f"step-{1 + row // 4}" for row in range(ROWS)}
    assert checkpoints_of(config) == expected
    twice = record_training(tmp_path / "twice", model_folder, corpus, 0.0, 2, begin=2, **exact)
    assert set(checkpoints_of(twice).values()) == {f"step-{step}" for step in range(11, 21)}
    mine, theirs = decoded(config), decoded(twice)
    assert mine.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (mine[name] - gradient).norm() < 1e-3 * gradient.norm(), "weights and whitening are the same"


def test_examples_that_only_the_warm_up_saw_are_in_a_corpus_of_ids(
    tmp_path: Path, model_folder: Path, corpus: Path
) -> None:
    index, trained, model = tmp_path / "index", tmp_path / "trained", load(model_folder)
    batches = batches_of(corpus)
    for number, batch in enumerate(batches):
        batch["lorif_ids"] = [f"doc {4 * number + row}" for row in range(4)]  # type: ignore[assignment]
    with lc.record(model, index, checkpoint=trained, ids="doc", begin=2, **SETTINGS):
        train(model, batches, 1e-4)
        model.save_pretrained(trained)
        byte_tokenizer().save_pretrained(trained)
    assert sorted(lc.open_index(index).scores(["the cat"])[0]) == sorted(f"doc {number}" for number in range(ROWS))


@pytest.mark.parametrize("cause", ["memory", "memory of torch", "too many"])
def test_examples_without_a_row_are_counted_and_named(
    cause: str, tmp_path: Path, model_folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refuse(*_: Any) -> None:
        kind = MemoryExhaustedError if cause == "memory" else torch.OutOfMemoryError
        raise kind("the model in training takes all memory")

    if cause == "memory":
        monkeypatch.setattr("lorif_core.recording.rows_afterwards.load_model", refuse)
    elif cause == "memory of torch":
        monkeypatch.setattr("lorif_core.recording.rows_afterwards.ShardIndexer.encode", refuse)
    else:
        monkeypatch.setattr("lorif_core.recording.rows_afterwards.MOST", len(EARLY) - 1)
    config = record_one_epoch(tmp_path, model_folder, corpus)
    generation = Store(config.index).latest()
    assert generation.rows == ROWS - len(EARLY) and generation.changes["recorded"]["missing"] == len(EARLY)
    (warning,) = [entry.getMessage() for entry in caplog.records if "have no row" in entry.getMessage()]
    assert "24 examples" in warning and "s20, s21" in warning and "update.policy=refresh" in warning
    assert ("takes all memory" in caplog.text) == (cause != "too many")
    console = Console(record=True, width=200)
    console.print(generations_table(run_status(config.index, []).data["generations"]))
    assert "steps 7 to 10, 24 examples without a row" in console.export_text()


@pytest.mark.parametrize(("share", "reads"), [(0.25, 1), (0.0, 2)])
def test_a_corpus_is_read_once_if_memory_allows(
    share: float, reads: int, tmp_path: Path, model_folder: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, calls = recorded_shards.read_examples, list[Any]()

    def count(*arguments: Any) -> Any:
        calls.append(arguments)
        return read(*arguments)

    monkeypatch.setattr(recorded_shards, "read_examples", count)
    monkeypatch.setattr(recorded_shards, "_SHARE", share)
    config = record_training(tmp_path, model_folder, corpus)
    assert len(calls) == reads and len(metadata_of(config)) == ROWS


def test_texts_are_cut_as_training_cut_them(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    index, trained, model = tmp_path / "index", tmp_path / "trained", load(model_folder)
    batches = [{key: value[:, :20] for key, value in batch.items()} for batch in batches_of(corpus)]
    with lc.record(model, index, checkpoint=trained, corpus=corpus, columns={"id": "id"}, **SETTINGS):
        train(model, batches * 2, 1e-4)
        model.save_pretrained(trained)
        byte_tokenizer().save_pretrained(trained)
    generation = Store(str(index)).latest()
    assert generation.rows == ROWS and generation.index_spec.tokenisation.max_length == 20


def with_stored_rank(config: Config) -> Config:
    """CONFIG with the rank of an index that keeps the terms of each row."""
    rank = Store(config.index).latest().index_spec.code.rank
    return config.model_copy(update={"code": config.code.model_copy(update={"rank": rank})})


@pytest.mark.usefixtures("prefect_server", "ray_session")
@pytest.mark.parametrize(
    ("sightings", "max_drift", "decision"),
    [("last", 1.0, "follows"), ("last", 0.0, "refreshed"), ("each", 1.0, "follows")],
)
def test_an_update_measures_the_drift_of_recorded_rows(
    sightings: str, max_drift: float, decision: str, tmp_path: Path, model_folder: Path, corpus: Path
) -> None:
    config = record_training(tmp_path, model_folder, corpus, rate=1e-3, sightings=sightings)
    config = with_stored_rank(config)
    config = config.model_copy(update={"update": config.update.model_copy(update={"max_drift": max_drift})})
    generation = update(config)
    (older,) = generation.changes["older_rows"]
    assert older["decision"] == decision and (0.3 if sightings == "each" else 0.5) < older["cosine"] <= 1.0
    assert generation.rows == ROWS
    recorded = [part for part in generation.parts if part.checkpoint.startswith("recorded:") and part.rows]
    assert bool(recorded) == (decision == "follows")
    assert update(config).generation == generation.generation, "nothing is left to do"


@pytest.mark.usefixtures("prefect_server", "ray_session")
def test_recorded_rows_are_taken_down(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    """Before an update has measured their drift; the next one does so all the same."""
    from tasks.removal import remove_rows

    config = record_training(tmp_path, model_folder, corpus, rate=1e-3)
    store = Store(config.index)
    rows = rows_with_ids(store, store.latest().factors_version, ["s25"])
    with hold_lease(config.index, config.storage, "remove") as lease:
        remove_rows(store, rows, config.compute, config.update, lease)
    assert "s25" not in metadata_of(config) and store.latest().rows == ROWS - 1
    assert update(config).changes["older_rows"] and not store.latest().is_unmeasured
    again = record_training(tmp_path, model_folder, corpus)
    assert "s25" not in metadata_of(again), "a later training does not bring it back"


def test_status_shows_a_recording_that_is_under_way(tmp_path: Path, model_folder: Path, corpus: Path) -> None:
    index, model = tmp_path / "index", load(model_folder)
    with lc.record(
        model, index, checkpoint=tmp_path / "none", corpus=corpus, columns=COLUMNS, **SETTINGS
    ) as recorder:
        train(model, batches_of(corpus), 1e-4)
        recorder.flush()
        (sentence,) = run_status(str(index), []).data["under_way"]
        assert f"the training {recorder.recording.run}, attempt 1 from step 1: 24 rows up to step 10" in sentence
    assert run_status(str(index), []).data["under_way"] == [sentence], "it was not published"
