"""Invariant: an example that cannot be scored is skipped and reported; it never becomes a row of zeros or NaN."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
from lorif_core.gradients.extract import NON_FINITE_GRADIENT, NON_FINITE_LOSS
from lorif_core.lifecycle.calibrate import calibration_sample, read_sample
from lorif_core.lifecycle.index_shard import NO_SCORED_TOKEN, ShardIndexer
from lorif_core.lifecycle.plan import make_plan
from lorif_core.out_of_memory import is_out_of_memory
from lorif_core.tables.store import Store
from tests.chat_templates import CASES, TALK, with_template
from tests.models import gpt2, make_example
from tests.tiny_tokenizer import byte_tokenizer


@pytest.fixture(params=[{"kind": "rank", "rank": 1}, {"kind": "rank", "rank": 2}, {"kind": "dense"}], ids=str)
def indexer(request: pytest.FixtureRequest, model_folder: Path, corpus_file: Path, tmp_path: Path) -> ShardIndexer:
    config = parse_config(
        {
            "index": str(tmp_path / "index"),
            "model": {"path": str(model_folder)},
            "corpus": {"uri": str(corpus_file), "max_length": 64},
            "projection": {"kind": "random", "factor": 4},
            "code": request.param,
            "compute": {"tokens_per_batch": 64},
        }
    )
    return ShardIndexer(config, make_plan(config).spec)


def poison(indexer: ShardIndexer, token: int) -> None:
    """A fault: the embedding of one token is infinite, which spoils only the examples that contain it."""

    def spoil(_module: torch.nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        return output.masked_fill((inputs[0] == token)[..., None], float("inf"))

    indexer.loaded.model.get_input_embeddings().register_forward_hook(spoil)


def test_bad_examples_are_skipped_and_reported(indexer: ShardIndexer) -> None:
    poison(indexer, 200)
    examples = [
        make_example([1, 2, 3, 4], name="good"),
        make_example([5], name="one token"),
        make_example([5, 200, 6], name="infinite"),
        make_example([], name="empty"),
        make_example([7, 8, 9], [-100, -100, -100], name="masked"),
        make_example([9, 8, 7, 6, 5], name="also good"),
    ]
    rows, skipped, _ = indexer.encode(examples)
    assert [example.example_id for example in rows.examples] == ["good", "also good"]
    assert np.isfinite(rows.codes).all() and np.isfinite(rows.losses).all() and rows.codes.any(axis=1).all()
    reasons = dict(skipped)
    assert reasons.pop("infinite") in (NON_FINITE_LOSS, NON_FINITE_GRADIENT)
    assert reasons == dict.fromkeys(("one token", "empty", "masked"), NO_SCORED_TOKEN)


@pytest.mark.parametrize("place", ["model.loading.LoadedModel.backward", "lifecycle.index_shard.read_rows"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), pa.ArrowMemoryError("malloc"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_a_lack_of_memory_is_no_fault_of_the_file_or_of_the_table(
    place: str, error: Exception, indexer: ShardIndexer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It passes through the reader of the corpus and the writer of the table, which is Lance, as what it is."""
    plan = make_plan(indexer._config)
    Store(indexer._config.index).create(plan.spec)

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"lorif_core.{place}", fail)
    with pytest.raises(type(error)) as raised:
        indexer.index(plan.shards[0])
    assert is_out_of_memory(raised.value)


def test_a_bad_example_does_not_touch_its_neighbours(indexer: ShardIndexer) -> None:
    """It is in the same batch as good examples, where NaN could spread."""
    good = [make_example([1, 2, 3, 4], name="a"), make_example([4, 3, 2, 1], name="b")]
    alone, _, _ = indexer.encode(good)
    poison(indexer, 200)
    together, _, _ = indexer.encode([good[0], make_example([5, 6, 200, 6], name="infinite"), good[1]])
    np.testing.assert_allclose(
        together.codes.astype(np.float32), alone.codes.astype(np.float32), rtol=2e-3, atol=1e-3
    )
    np.testing.assert_allclose(together.scales, alone.scales, rtol=1e-5)


def test_the_error_of_a_bad_record_is_raised_unchanged(model_folder: Path, tmp_path: Path) -> None:
    """Rows are computed while Lance writes; Lance must not replace their errors by its own."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "the cat"}\n' * 40 + '{"text": null}\n')
    config = parse_config(
        {
            "index": str(tmp_path / "index"),
            "model": {"path": str(model_folder)},
            "corpus": {"uri": str(corpus), "max_length": 64},
            "projection": {"kind": "random", "factor": 4},
            "compute": {"memory_gb": 1e-5},  # blocks of 16 rows: some are written before the bad record is read
            "curvature": {"kind": "none"},
        }
    )
    plan = make_plan(config)
    Store(config.index).create(plan.spec)
    with pytest.raises(UserError, match="row 40"):
        ShardIndexer(config, plan.spec).index(plan.shards[0])
    corpus.write_text('{"text": "the cat"}\n' * 40)
    receipt = ShardIndexer(config, plan.spec).index(make_plan(config).shards[0])
    Store(config.index).rows.commit_wave([receipt], since=1)
    assert receipt.rows == 40 and Store(config.index).rows.counts()[0] == 40


@pytest.mark.parametrize("chunk", [False, True])
@pytest.mark.parametrize(
    ("columns", "broken"),
    [
        ({"text": "text"}, "text"),
        ({"text": "text", "id": "id"}, "id"),
        ({"prompt": "p", "completion": "text", "id": "id"}, "p"),
        ({"prompt": "p", "completion": "text"}, "text"),
    ],
)
def test_a_record_with_half_of_a_surrogate_pair_is_skipped_and_named(
    model_folder: Path, tmp_path: Path, chunk: bool, columns: dict[str, str], broken: str
) -> None:
    rows = [{"id": f"r{i}", "text": f"the cat {i}", "p": "see ", "unused": "\ud800"} for i in range(5)]
    for number, half in ((1, "\ud800"), (3, "\ud800")):  # an id that is no text is not compared with others either
        rows[number][broken] = f"the {half} cat"
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = parse_config(
        {
            "index": str(tmp_path / "index"),
            "model": {"path": str(model_folder)},
            "corpus": {"uri": str(tmp_path / "corpus.jsonl"), "max_length": 64, "chunk": chunk, **columns},
            "projection": {"kind": "random", "factor": 4},
            "curvature": {"kind": "none"},
        }
    )
    plan = make_plan(config)
    Store(config.index).create(plan.spec)
    receipt = ShardIndexer(config, plan.spec).index(plan.shards[0])
    assert receipt.rows == 3
    assert (
        len(read_sample(calibration_sample(plan.shards, 5), config, ShardIndexer(config, plan.spec).loaded)) == 5
    )
    by_position = broken == "id" or "id" not in columns
    assert receipt.skipped == tuple(
        (f"corpus.jsonl#{i}" if by_position else f"r{i}",
         f"half of a surrogate pair, which is not text, in the column {broken!r}")
        for i in (1, 3)
    )  # fmt: skip


def test_a_conversation_with_half_of_a_surrogate_pair_or_without_the_assistant_is_skipped(tmp_path: Path) -> None:
    """Others of the file are indexed, with their turns beside the text."""
    tokenizer = with_template(byte_tokenizer(), CASES[0], CASES[0].template)
    gpt2(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    talks = [TALK, [TALK[1], {"role": "assistant", "content": "a \ud800 b"}], TALK[:2], TALK[1:]]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"m": talk}) + "\n" for talk in talks))
    config = parse_config(
        {
            "index": str(tmp_path / "index"),
            "model": {"path": str(tmp_path / "model")},
            "corpus": {"uri": str(tmp_path / "a.jsonl"), "max_length": 64, "messages": "m"},
            "projection": {"kind": "random", "factor": 4},
            "curvature": {"kind": "none"},
        }
    )
    plan = make_plan(config)
    store = Store(config.index)
    store.create(plan.spec)
    receipt = ShardIndexer(config, plan.spec).index(plan.shards[0])
    half = "half of a surrogate pair, which is not text, in the column 'm'"
    assert receipt.rows == 2 and receipt.skipped == (("a.jsonl#1", half), ("a.jsonl#2", NO_SCORED_TOKEN))
    changed = with_template(byte_tokenizer(), CASES[0], CASES[0].unmarked)
    changed.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"tokenisation.chat \(template #\w+ there, template #\w+ here\)"):
        make_plan(config)
    with pytest.raises(UserError, match=r"the chat template of .*model changed after the plan was made"):
        ShardIndexer(config, plan.spec)
