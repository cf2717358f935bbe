"""Invariant: no object of an index is a pickle, and no column of its tables can contain one."""

import json
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from lorif_core.config import Config, StorageConfig
from lorif_core.errors import LorifError
from lorif_core.tables.datasets import Tables

ENDINGS = {".lance", ".manifest", ".txn", ".json"}
CHECKSUMS = 3  # of a row, 12 bytes
BASE64_OF_PICKLES = ("gAI", "gAM", "gAQ", "gAU")  # b"\x80" and the protocol, 2 to 5


def is_pickle(content: bytes) -> bool:
    """Whether a content parses as pickle opcodes up to STOP, or begins like a pickle or like torch's zip file."""
    try:
        return [opcode.name for opcode, _, _ in pickletools.genops(content)][-1] == "STOP"
    except ValueError:
        return content.startswith((b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6))))


def is_plain(kind: pa.DataType) -> bool:
    """Whether a column type is text or numbers, which cannot contain the bytes of an object."""
    if pa.types.is_fixed_size_list(kind) and pa.types.is_integer(kind.value_type):
        return kind.list_size <= CHECKSUMS
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.types.is_floating(kind.value_type)
    known = pa.types
    tests = (known.is_string, known.is_integer, known.is_floating, known.is_timestamp, known.is_boolean)
    return any(test(kind) for test in tests)


def check_without_pickle(files: Mapping[str, bytes], tables: Tables, names: Sequence[str]) -> None:
    """Check that files have known endings and are not pickles, and that columns are plain without pickled text."""
    assert {Path(name).suffix for name in files} <= ENDINGS
    assert [name for name, content in files.items() if is_pickle(content)] == []
    for name, content in files.items():
        if name.endswith(".json"):
            json.loads(content)
    for name in names:
        table = tables.read(name)
        assert [field.name for field in table.schema if not is_plain(field.type)] == []
        texts = [field.name for field in table.schema if pa.types.is_string(field.type)]
        values = {value for text in texts for value in table.column(text).to_pylist() if value is not None}
        assert [value for value in values if value.startswith(BASE64_OF_PICKLES)] == []


def test_a_local_index_has_no_pickle(built: Config) -> None:
    files = {str(path): path.read_bytes() for path in Path(built.index).rglob("*") if path.is_file()}
    assert len(files) > 10
    check_without_pickle(
        files, Tables(built.index, StorageConfig()), ["factors", "curvature", "generations", "skipped"]
    )


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_recognised(protocol: int, tmp_path: Path) -> None:
    assert is_pickle(pickle.dumps({"weights": [1.5, LorifError("x")]}, protocol))
    torch.save({"x": torch.ones(1)}, tmp_path / "x.pt")
    assert is_pickle((tmp_path / "x.pt").read_bytes())
    assert not is_plain(pa.binary()) and not is_plain(pa.list_(pa.uint8())) and is_plain(pa.list_(pa.float16(), 3))
