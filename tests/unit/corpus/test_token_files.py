"""Invariant: files of token ids give exactly the tokens that were written, row by row, wherever reading begins;
what cannot be read is refused in one sentence, before anything is computed.

If this breaks, scores belong to other tokens than the model was trained on.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorif_core.config import CorpusConfig
from lorif_core.corpus.columns import needed_columns, optional_columns
from lorif_core.corpus.shards import Listing, check_first_file, list_shards, read_rows
from lorif_core.corpus.tokenise import make_examples
from lorif_core.errors import CorpusChangedError, LorifError, UserError
from tests.tiny_tokenizer import BOS, VOCAB, byte_tokenizer
from tests.unit.corpus.corpus_files import STORAGE, make_rows, write
from tests.unit.corpus.token_writers import write_mds, write_megatron

Rows = list[list[int]]
SETTINGS = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS = st.lists(st.lists(st.integers(0, 60_000), min_size=1, max_size=300), min_size=1, max_size=40)


def write_offsets(path: Path, rows: Rows, dtype: str = "uint16") -> Path:
    np.save(path, np.array([token for row in rows for token in row], dtype))
    np.save(path.with_suffix(".rows.npy"), np.cumsum([0, *map(len, rows)]))
    return path


def write_raw(path: Path, rows: Rows) -> Path:
    """Without a header, and without the end of the last row."""
    np.array([token for row in rows for token in row], "<u4").tofile(path)
    np.cumsum([0, *map(len, rows)], dtype=np.int64)[:-1].tofile(path.with_suffix(".starts"))
    return path


def mds_rows(rows: Rows, dtype: str) -> list[dict[str, Any]]:
    return [{"tokens": np.array(row, dtype), "id": f"k{i}"} for i, row in enumerate(rows)]


def as_bytes(rows: Rows, dtype: str) -> list[dict[str, Any]]:
    return [{"tokens": np.array(row, dtype).tobytes()} for row in rows]


FORMATS: dict[str, tuple[Callable[[Path, Rows], Path], dict[str, Any]]] = {
    "megatron": (lambda folder, rows: write_megatron(folder / "a.bin", [[row] for row in rows]), {}),
    "megatron in sentences": (
        lambda folder, rows: write_megatron(folder / "a.bin", [[row[:1], row[1:]] for row in rows], "int32"), {},
    ),
    "npy with offsets": (
        lambda folder, rows: write_offsets(folder / "a.npy", rows), {"binary": {"offsets": ".rows.npy"}},
    ),
    "bin with starts": (
        lambda folder, rows: write_raw(folder / "a.bin", rows),
        {"binary": {"dtype": "uint32", "offsets": ".starts"}},
    ),
    "mds": (
        lambda folder, rows: write_mds(
            folder / "shard.00000.mds", {"tokens": "ndarray:uint16", "id": "str"}, mds_rows(rows, "uint16")
        ),
        {"id": "id"},
    ),
    "mds of any type": (
        lambda folder, rows: write_mds(
            folder / "shard.00000.mds", {"tokens": "ndarray", "id": "str"}, mds_rows(rows, "int64")
        ),
        {},
    ),
    "mds of bytes": (
        lambda folder, rows: write_mds(folder / "s.mds", {"tokens": "bytes"}, as_bytes(rows, "int64")), {},
    ),
    "mds of zstd": (
        lambda folder, rows: write_mds(folder / "s.mds.zstd", {"tokens": "bytes"}, as_bytes(rows, "uint32")),
        {"binary": {"dtype": "uint32"}},
    ),
}  # fmt: skip


def tokens_of(path: Path | str, **keys: Any) -> CorpusConfig:
    return CorpusConfig(uri=str(path), **{"tokens": "tokens", **keys})


def listing_of(corpus: CorpusConfig) -> Listing:
    return list_shards(corpus, STORAGE)


def read(corpus: CorpusConfig, columns: list[str] | None = None) -> list[tuple[int, list[int]]]:
    """(row, tokens) of all rows."""
    return [
        (row, np.asarray(record["tokens"]).tolist())
        for shard in listing_of(corpus).shards
        for row, record in read_rows(shard, columns or ["tokens"], STORAGE, binary=corpus.binary)
    ]


def error_of(corpus: CorpusConfig) -> LorifError:
    """What refuses a corpus, at the latest when its rows are read."""
    with pytest.raises(LorifError) as caught:
        check_first_file(corpus, STORAGE)
        listing = listing_of(corpus)
        assert not listing.damaged, listing.damaged
        read(corpus)
    assert "\n" not in str(caught.value)
    return caught.value


# ---- what is read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@SETTINGS
@given(rows=ROWS)
def test_the_rows_are_the_written_tokens(tmp_path: Path, name: str, rows: Rows) -> None:
    writer, keys = FORMATS[name]
    writer(tmp_path, rows)
    assert read(tokens_of(tmp_path, **keys)) == list(enumerate(rows))


@pytest.mark.parametrize("name", FORMATS)
def test_every_shard_can_be_read_alone(tmp_path: Path, name: str) -> None:
    rows = [[i % 50_000, i % 7] for i in range(1300)]
    writer, keys = FORMATS[name]
    corpus = tokens_of(writer(tmp_path, rows).parent, **keys)
    shards = listing_of(corpus).shards
    assert [shard.rows for shard in shards] == [512, 512, 276]
    for shard in reversed(shards):
        read_alone = [
            (row, np.asarray(record["tokens"]).tolist())
            for row, record in read_rows(shard, ["tokens"], STORAGE, binary=corpus.binary)
        ]
        assert read_alone == list(enumerate(rows))[shard.start : shard.start + shard.rows]


@SETTINGS
@given(total=st.integers(1, 3000), length=st.integers(2, 70))
def test_a_flat_file_is_cut_into_rows_of_one_length(tmp_path: Path, total: int, length: int) -> None:
    ids = np.arange(total, dtype=np.uint16)
    np.save(tmp_path / "a.npy", ids)
    ids.tofile(tmp_path / "b.bin")
    expected = [ids[start : start + length].tolist() for start in range(0, total, length)]
    for name in ("a.npy", "b.bin"):
        corpus = tokens_of(tmp_path / name, binary={"dtype": "uint16", "length": length})
        assert [row for _, row in read(corpus)] == expected


def test_an_array_of_two_dimensions_has_its_own_rows(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(12, dtype=">i4").reshape(3, 4))
    assert read(tokens_of(tmp_path, binary={"length": 99})) == [
        (0, [0, 1, 2, 3]), (1, [4, 5, 6, 7]), (2, [8, 9, 10, 11]),
    ]  # fmt: skip


def test_numpy_files_without_a_header_are_flat(tmp_path: Path) -> None:
    """OLMo's are such ones."""
    np.arange(5, dtype="<u2").tofile(tmp_path / "part-0.npy")
    assert read(tokens_of(tmp_path, binary={"dtype": "uint16", "length": 4})) == [(0, [0, 1, 2, 3]), (1, [4])]
    assert "set corpus.binary.dtype" in str(error_of(tokens_of(tmp_path, binary={"length": 4})))


def test_a_stream_of_tokens_may_have_several_ends_of_text_at_its_edges(tmp_path: Path) -> None:
    """They are no padding, which tokens of other files would be refused for."""
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = "<s>"
    letter = tokenizer("A")["input_ids"][0]
    write_megatron(tmp_path / "a.bin", [[[BOS, BOS, letter, BOS, BOS]]])
    corpus = tokens_of(tmp_path, max_length=8)
    (shard,) = listing_of(corpus).shards
    ((row, record),) = read_rows(shard, needed_columns(corpus), STORAGE, optional_columns(corpus))
    (example,) = make_examples(row, record, "a.bin", tokenizer, corpus, VOCAB)
    assert example.input_ids.tolist() == [BOS, BOS, letter, BOS, BOS]
    assert example.text == "<s><s>A<s><s>"


def test_mds_may_have_texts_and_ids(tmp_path: Path) -> None:
    columns = {"text": "str", "source": "int", "tokens": "ndarray:int32:2"}
    rows = [{"text": f"täxt {i}", "source": i, "tokens": np.array([i, i], "int32")} for i in range(3)]
    write_mds(tmp_path / "shard.00000.mds", columns, rows)
    (tmp_path / "index.json").write_text('{"shards": [], "version": 2}')
    corpus = CorpusConfig(uri=str(tmp_path), text="text", id="source")
    (shard,) = listing_of(corpus).shards
    assert list(read_rows(shard, ["text", "source"], STORAGE)) == [
        (i, {"text": f"täxt {i}", "source": i}) for i in range(3)
    ]
    rows[2]["source"] = 1
    write_mds(tmp_path / "shard.00000.mds", columns, rows)
    with pytest.raises(UserError, match="the id '1'"):
        listing_of(corpus)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A sparse file of 64 GiB: whoever read it whole would not get far."""
    path = tmp_path / "a.bin"
    with path.open("wb") as file:
        file.truncate(64 * 2**30)
    corpus = tokens_of(path, binary={"dtype": "uint16", "length": 2**24})
    shards = listing_of(corpus).shards
    assert sum(shard.rows for shard in shards) == 2048
    first = next(iter(read_rows(shards[-1], ["tokens"], STORAGE, binary=corpus.binary)))
    assert first[0] == 1536 and len(first[1]["tokens"]) == 2**24


# ---- which files ---------------------------------------------------------------------------------------------


def test_only_what_the_config_calls_tokens_is_read(tmp_path: Path) -> None:
    """A folder of jsonl may have weights, arrays and indexes beside it, and an index of it must stay as it is."""
    write(tmp_path / "a.jsonl", make_rows(2))
    write_megatron(tmp_path / "b.bin", [[[1, 2]]])
    for name in ("weights.bin", "lengths.npy", "other.idx"):
        (tmp_path / name).write_bytes(b"anything")
    listing = list_shards(CorpusConfig(uri=str(tmp_path)), STORAGE)
    assert [file.name for file in listing.files] == ["a.jsonl"]
    assert sum(group.files for group in listing.notes.unread) == 5
    (tmp_path / "a.jsonl").unlink()
    listing = listing_of(tokens_of(tmp_path))
    assert [file.name for file in listing.files] == ["b.bin"]
    notes = " ".join(listing.notes.sentences())
    assert "without .idx beside them and without corpus.binary.dtype" in notes and "weights.bin" in notes
    assert "only with corpus.tokens and corpus.binary" in notes and "indexes of Megatron files" in notes


def test_offsets_are_no_tokens(tmp_path: Path) -> None:
    write_offsets(tmp_path / "a.npy", [[1, 2], [3]])
    listing = listing_of(tokens_of(tmp_path, binary={"offsets": ".rows.npy"}))
    assert [file.name for file in listing.files] == ["a.npy"]
    assert "offsets of rows" in " ".join(listing.notes.sentences())


@pytest.mark.parametrize("pattern", ["a.bin", "*.bin", "*"])
def test_an_index_need_not_match_the_pattern(tmp_path: Path, pattern: str) -> None:
    write_megatron(tmp_path / "a.bin", [[[1, 2]], [[3]]])
    assert read(tokens_of(tmp_path / pattern)) == [(0, [1, 2]), (1, [3])]


def test_a_compressed_copy_is_not_read_twice(tmp_path: Path) -> None:
    for name in ("s.mds", "s.mds.zstd"):
        write_mds(tmp_path / name, {"tokens": "bytes"}, as_bytes([[1, 2]], "int64"))
    assert [file.name for file in listing_of(tokens_of(tmp_path)).files] == ["s.mds"]


def test_a_shard_that_its_index_names_and_that_is_not_there_is_damage(tmp_path: Path) -> None:
    """A download that broke off would otherwise go unnoticed."""
    names = ["shard.00000.mds", "shard.00001.mds", "shard.00002.mds"]
    for name in (names[0], f"{names[1]}.zstd"):
        write_mds(tmp_path / name, {"tokens": "bytes"}, as_bytes([[1, 2]], "int64"))
    shards = [
        {"format": "mds", "raw_data": {"basename": name}, "zip_data": {"basename": f"{name}.zstd"}}
        for name in names
    ]
    (tmp_path / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
    listing = listing_of(tokens_of(tmp_path))
    assert [file.name for file in listing.files] == [names[0], f"{names[1]}.zstd"]
    assert [name for name, _ in listing.damaged] == [names[2]] and "is missing" in listing.damaged[0][1]
    (tmp_path / "index.json").write_text('{"vocabulary": []}')
    assert listing_of(tokens_of(tmp_path)).damaged == ()


# ---- revisions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "other"), [("megatron", "a.idx"), ("npy with offsets", "a.rows.npy")])
def test_a_change_of_the_file_beside_it_is_a_change(tmp_path: Path, name: str, other: str) -> None:
    writer, keys = FORMATS[name]
    corpus = tokens_of(writer(tmp_path, [[1, 2], [3]]), **keys)
    before = listing_of(corpus)
    assert listing_of(corpus).files == before.files
    os.utime(tmp_path / other, ns=(1, 1))
    assert listing_of(corpus).files != before.files
    with pytest.raises(CorpusChangedError):
        list(read_rows(before.shards[0], ["tokens"], STORAGE, binary=corpus.binary))
    (tmp_path / other).unlink()
    with pytest.raises(CorpusChangedError, match="removed"):
        list(read_rows(before.shards[0], ["tokens"], STORAGE, binary=corpus.binary))


def test_other_rows_of_the_same_file_are_a_change(tmp_path: Path) -> None:
    """An update computes them again, and never mixes rows of two lengths."""
    np.arange(100, dtype="<u2").tofile(tmp_path / "a.bin")
    files = [
        listing_of(tokens_of(tmp_path, binary={"dtype": dtype, "length": length})).files
        for dtype, length in (("uint16", 10), ("uint16", 20), ("uint32", 10))
    ]
    assert len({file for listed in files for file in listed}) == 3


# ---- what is refused -----------------------------------------------------------------------------------------


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size] if size >= 0 else path.read_bytes()[: path.stat().st_size + size])


def patched(path: Path, offset: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[offset : offset + len(content)] = content
    path.write_bytes(data)


FLAWS: dict[str, tuple[str, Callable[[Path], object], list[str]]] = {
    "tokens cut off": ("megatron", lambda f: cut(f / "a.bin", -1), ["a.bin has", "a.idx describes", "restore"]),
    "tokens too long": ("megatron", lambda f: (f / "a.bin").write_bytes(b"x" * 999), ["999 bytes"]),
    "index cut off": ("megatron", lambda f: cut(f / "a.idx", -1), ["a.idx is cut off"]),
    "index of few bytes": ("megatron", lambda f: cut(f / "a.idx", 5), ["a.idx is cut off"]),
    "index of another kind": (
        "megatron", lambda f: patched(f / "a.idx", 0, b"TNTIDX"), ["not the index", "MMIDIDX"],
    ),
    "another version": ("megatron", lambda f: patched(f / "a.idx", 9, b"\x02"), ["version 2", "only version 1"]),
    "index of floats": ("megatron", lambda f: patched(f / "a.idx", 17, b"\x07"), ["type 7", "token ids"]),
    "array of floats": (
        "npy with offsets", lambda f: np.save(f / "a.npy", np.ones(9)), ["float64", "save integers"],
    ),
    "array of objects": (
        "npy with offsets", lambda f: np.save(f / "a.npy", np.array([{}]), allow_pickle=True), ["object"],
    ),
    "array cut off": ("npy with offsets", lambda f: cut(f / "a.npy", -1), ["a.npy is cut off"]),
    "header cut off": ("npy with offsets", lambda f: cut(f / "a.npy", 20), ["a.npy has a damaged header"]),
    "offsets beyond the end": (
        "npy with offsets", lambda f: np.save(f / "a.rows.npy", np.array([0, 1000])), ["a.rows.npy does not fit"],
    ),
    "offsets out of order": (
        "npy with offsets", lambda f: np.save(f / "a.rows.npy", np.array([0, 3, 1, 4])), ["a.rows.npy does not"],
    ),
    "no offsets": ("npy with offsets", lambda f: (f / "a.rows.npy").unlink(), ["no file of offsets", ".rows.npy"]),
    "half a token": ("bin with starts", lambda f: cut(f / "a.bin", -1), ["not a multiple of the 4 of uint32"]),
    "shard cut off": ("mds", lambda f: cut(f / "shard.00000.mds", -1), ["is cut off"]),
    "shard without samples": ("mds", lambda f: cut(f / "shard.00000.mds", 10), ["not an MDS shard"]),
    "no shard": ("mds", lambda f: (f / "shard.00000.mds").write_bytes(b"x" * 99), ["not an MDS shard"]),
    "compressed shard cut off": ("mds of zstd", lambda f: cut(f / "s.mds.zstd", -4), ["s.mds.zstd is"]),
    "unknown compression": (
        "mds of zstd", lambda f: (f / "s.mds.zstd").rename(f / "s.mds.br"), ["compressed, but not with zstd"],
    ),
    "bytes of another type": (
        "mds of bytes",
        lambda f: write_mds(f / "s.mds", {"tokens": "bytes"}, [{"tokens": b"123"}]),
        ["row 0", "3 bytes", "corpus.binary.dtype"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_file_that_cannot_be_read_is_named_in_one_sentence(tmp_path: Path, flaw: str) -> None:
    name, spoil, parts = FLAWS[flaw]
    writer, keys = FORMATS[name]
    writer(tmp_path, [[1, 2], [3, 4]])
    spoil(tmp_path)
    error = error_of(tokens_of(tmp_path, **keys))
    assert error.exit_code == 2 and all(part in str(error) for part in parts), error


def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path) -> None:
    for name, (writer, keys) in FORMATS.items():
        folder = tmp_path / name
        folder.mkdir()
        writer(folder, [[1, 2], [3, VOCAB]])
        corpus = tokens_of(folder, max_length=8, **keys)
        (shard,) = listing_of(corpus).shards
        records = list(read_rows(shard, needed_columns(corpus), STORAGE, binary=corpus.binary))
        with pytest.raises(UserError, match=rf"tokens of row 1 of .* contain {VOCAB}; the model accepts 0 to"):
            for row, record in records:
                make_examples(row, record, shard.name, None, corpus, VOCAB)


def test_columns_that_such_a_file_does_not_have_are_named(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a.bin", [[[1, 2]]])
    assert "set corpus.tokens to tokens" in str(error_of(tokens_of(tmp_path, tokens="ids")))
    assert "no column 'id'" in str(error_of(tokens_of(tmp_path, id="id")))


def test_a_flat_file_needs_to_be_told_its_rows(tmp_path: Path) -> None:
    np.arange(9, dtype="<u2").tofile(tmp_path / "a.bin")
    error = str(error_of(tokens_of(tmp_path, binary={"dtype": "uint16"})))
    assert "one sequence of 9 tokens" in error and "corpus.binary.length" in error
    with pytest.raises(ValueError, match="set one of them"):
        tokens_of(tmp_path, binary={"length": 4, "offsets": ".npy"})
