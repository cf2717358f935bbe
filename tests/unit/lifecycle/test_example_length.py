"""Invariant: `max_length: auto` cuts at most one record in a hundred if that is affordable, and then never moves.

If this breaks, an index lacks most of its texts without a word, or an update cannot join the rows before it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.corpus.shards import list_shards
from lorif_core.errors import UserError
from lorif_core.evaluation.config import EvaluationConfig
from lorif_core.lifecycle import example_length
from lorif_core.lifecycle.example_length import automatic_length, measured_length, settled
from lorif_core.lifecycle.plan import make_spec, preflight
from lorif_core.model.loading import Skeleton, load_skeleton
from tests.tiny_tokenizer import byte_tokenizer
from tests.unit.corpus.corpus_files import STORAGE, write
from tests.unit.corpus.token_writers import write_megatron

LENGTHS = st.lists(st.integers(0, 5000), min_size=1, max_size=300).map(np.array)


def config_of(folder: Path, **sections: Any) -> Config:
    raw: dict[str, Any] = {"index": str(folder / "index"), "model": {"path": "m"}, "corpus": {"uri": str(folder)}}
    for name, section in sections.items():
        raw[name] = {**raw.get(name, {}), **section}
    return parse_config(raw)


def skeleton_of(positions: int | None) -> Skeleton:
    return Skeleton(None, byte_tokenizer(), "float32", positions, {})


def longest_of(config: Config, positions: int | None = None) -> tuple[int, str]:
    resolved, length = measured_length(config, skeleton_of(positions), list_shards(config.corpus, STORAGE).shards)
    assert resolved.corpus.longest == length.longest
    return length.longest, length.sentence()


@given(LENGTHS)
def test_one_record_in_a_hundred_is_cut_at_most(lengths: np.ndarray) -> None:
    longest = automatic_length(lengths, chunk=False)
    assert 512 <= longest <= 2048 and longest % 64 == 0
    assert longest == 2048 or np.mean(lengths > longest) <= 0.01
    assert longest == 512 or np.mean(lengths > longest - 64) >= 0.01 - 1 / len(lengths)
    assert automatic_length(lengths, chunk=True) == 512


@pytest.mark.parametrize(
    ("tokens", "positions", "batch", "longest"),
    [
        (40, None, "auto", 512),
        (900, None, "auto", 960),
        (900, 300, "auto", 300),
        (900, 4096, "auto", 960),
        (9000, 100_000, "auto", 2048),
        (900, None, 700, 700),
    ],
)
def test_model_and_batches_set_limits(
    tmp_path: Path, tokens: int, positions: int | None, batch: int | str, longest: int
) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x" * tokens}] * 200)
    config = config_of(tmp_path, compute={"tokens_per_batch": batch})
    assert longest_of(config, positions)[0] == longest


def test_the_share_that_is_cut_is_told_for_every_setting(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"text": "x" * (100 if i % 4 else 1000)} for i in range(400)])
    longest, told = longest_of(config_of(tmp_path, corpus={"max_length": 128}))
    assert longest == 128 and "25.0% are longer and are truncated" in told and "1,000" in told
    assert "are cut into blocks" in longest_of(config_of(tmp_path, corpus={"max_length": 128, "chunk": True}))[1]
    assert longest_of(config_of(tmp_path))[0] == 1024


def test_the_sample_is_spread_over_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(100):
        write(tmp_path / f"{number:03}.jsonl", [{"text": "x" * (10 if number < 90 else 1500)}] * 20)
    config, read = config_of(tmp_path), list[str]()
    rows = example_length.read_rows
    monkeypatch.setattr(
        example_length, "read_rows", lambda shard, *a: (read.append(shard.name), rows(shard, *a))[1]
    )
    assert longest_of(config)[0] == 1536
    assert len(read) <= 32 and read[0] == "000.jsonl" and read[-1] >= "096.jsonl"


def test_tokens_without_a_tokenizer_are_measured(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a.bin", [[list(range(700))]] * 50)
    config = config_of(tmp_path, corpus={"tokens": "tokens"})
    shards = list_shards(config.corpus, STORAGE).shards
    _, length = measured_length(config, replace(skeleton_of(None), tokenizer=None), shards)
    assert length.longest == 704


def test_a_file_that_cannot_be_read_is_left_to_the_build(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [], lines=b'{"text": "x"}\n{"text": 1}\n')
    write(tmp_path / "b.jsonl", [{"text": "x" * 600}] * 9)
    config = config_of(tmp_path)
    shards = list_shards(config.corpus, STORAGE).shards
    gone = replace(shards[1], uri=str(tmp_path / "none.jsonl"))
    _, length = measured_length(config, skeleton_of(None), [gone, *shards])
    assert len(length.sampled) == 10 and length.longest == 640


def test_an_evaluation_keeps_its_number() -> None:
    """Its examples and models are made before there is an index, and their identity has the length."""
    keys = {"queries": "q", "methods": {"a": {}}}
    base: dict[str, Any] = {"model": {"path": "m"}, "corpus": {"uri": "c"}}
    assert EvaluationConfig(config=base, **keys).base().corpus.longest == 512
    assert EvaluationConfig(config=base, **keys).method("a", "i", "m").corpus.longest == 512
    with pytest.raises(UserError, match="must be a number"):
        EvaluationConfig(config={**base, "corpus": {"uri": "c", "max_length": "auto"}}, **keys).base()


def test_an_index_keeps_its_number(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one of an earlier release, under the default of today, and whatever the corpus has become."""
    write(tmp_path / "c" / "a.jsonl", [{"text": "x" * 60}] * 20)
    sections = {"model": {"path": str(model_folder)}, "corpus": {"uri": str(tmp_path / "c")}}
    skeleton = load_skeleton(config_of(tmp_path, **sections).model, STORAGE)
    built = config_of(tmp_path, **{**sections, "corpus": {**sections["corpus"], "max_length": 37}})
    spec = make_spec(built, skeleton)
    example_length.Store(built.index, STORAGE).create(spec)
    automatic = config_of(tmp_path, **sections)
    assert make_spec(automatic, skeleton) == spec and settled(automatic, spec).corpus.longest == 37
    shards = list_shards(automatic.corpus, STORAGE).shards
    assert measured_length(automatic, skeleton, shards)[1].longest == 37
    preflight(automatic)
