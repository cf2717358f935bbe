"""Invariant: an ids file of any editor gives the ids that stand in it."""

from pathlib import Path

import pytest

from lorif_core.errors import UserError
from lorif_core.lifecycle.removal import read_ids

IDS = ["plain", "with space ", "é\u2028separator", "form\x0cfeed"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_marks_and_line_ends_are_no_part_of_an_id(tmp_path: Path, encoding: str, newline: str, end: str) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(("\n".join(IDS) + end).replace("\n", newline).encode(encoding))
    assert read_ids(str(path)) == IDS


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf\r\n", b"\xef\xbb\xbf"])
def test_a_file_without_ids_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(UserError, match="is empty"):
        read_ids(str(tmp_path / "ids.txt"))
