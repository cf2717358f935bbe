"""Invariant: Prefect and Ray get folders that can be written and whose paths are short enough for a socket."""

import os
from pathlib import Path

import pytest

from lorif_core.errors import UserError
from tasks import folders
from tasks.folders import _can_write, private_ray_folder, provide_home

NOWHERE = "/proc/nowhere"  # nobody can make a folder there, not even root
RAY_SOCKET = "session_2026-11-26_00-48-25_939954_4194304/sockets/plasma_store"


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PREFECT_HOME", "RAY_TMPDIR", "TMPDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_folders_that_can_be_written_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    provide_home()
    assert os.environ["HOME"] == str(tmp_path) and "PREFECT_HOME" not in os.environ
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "own"))
    provide_home()
    assert os.environ["PREFECT_HOME"] == str(tmp_path / "own")


@pytest.mark.parametrize("home", [NOWHERE, "/dev/null", "~"])
def test_without_a_home_folder_prefect_writes_elsewhere(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    provide_home()
    assert Path("~").expanduser().is_dir()
    assert _can_write(Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser())


def test_a_home_folder_that_cannot_be_written_is_kept_for_its_credentials(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HOME", "/proc")
    provide_home()
    assert os.environ["HOME"] == "/proc" and _can_write(Path(os.environ["PREFECT_HOME"]))
    assert "/proc/.prefect cannot be written" in caplog.text and "set PREFECT_HOME" in caplog.text


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("length", [30, 39, 40, 60, 107, 200])
def test_the_sockets_of_ray_have_paths_that_are_short_enough(
    name: str, length: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "/tmp/" + "x" * (length - len("/tmp/"))
    monkeypatch.setattr(folders, "_can_write", lambda folder: True)
    monkeypatch.setenv(name, long)
    folder = private_ray_folder()
    assert len(f"{folder}/{RAY_SOCKET}") <= 107
    assert folder == (f"{long}/ray" if length <= 39 else "/tmp/ray"), "a folder that is short enough is kept"


def test_a_folder_for_ray_that_cannot_be_written_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", NOWHERE)
    assert _can_write(Path(private_ray_folder()))


def test_a_machine_without_any_folder_is_told_so_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_can_write", lambda folder: False)
    with pytest.raises(UserError, match=r"set RAY_TMPDIR to a folder .* at most 39 bytes"):
        private_ray_folder()
