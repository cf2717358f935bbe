"""Invariant: a build that was killed with all its processes ends, if run again, with the same rows."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from lorif_core.config import Config
from lorif_core.tables.store import Store
from tests.integration.building.test_build import ROWS
from tests.integration.conftest import MakeConfig
from tests.integration.lorif import LORIF
from tests.integration.rows import stored_rows
from tests.patience import patience


def start_build(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LORIF, "build", "-c", str(config), "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_first_commit(store: Store, process: subprocess.Popen[str]) -> None:
    """Wait until some waves are committed and others are not."""
    deadline = time.monotonic() + patience(120)
    while time.monotonic() < deadline and process.poll() is None:
        if store.rows.spec() is not None and store.rows.counts()[0] > 0:
            return
        time.sleep(0.05)
    pytest.fail(f"the build committed nothing: {process.communicate()[1][-2000:]}")


@pytest.mark.chaos
def test_a_killed_build_resumes_to_the_same_rows(
    make_config: MakeConfig, built: Config, corpus_file: Path, tmp_path: Path
) -> None:
    """The corpus has many small files, so that the kill falls between two waves."""
    lines = corpus_file.read_text().splitlines(keepends=True)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for start in range(0, len(lines), 22):
        (corpus / f"part-{start:04d}.jsonl").write_text("".join(lines[start : start + 22]))
    config = make_config(
        tmp_path / "index", corpus={"uri": str(corpus)}, code={"dtype": "float32"}, compute={"workers": 1}
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    process = start_build(path)
    store = Store(config.index)
    wait_for_first_commit(store, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert store.generations() == [], "a killed run must publish nothing"
    before = stored_rows(config)
    assert 0 < len(before) < ROWS, "the kill must fall between two commits"
    out, err = start_build(path).communicate(timeout=patience(240))
    assert json.loads(out.splitlines()[-1])["rows"] == ROWS, err[-2000:]
    after, expected = stored_rows(config), stored_rows(built)
    assert {name: after[name] for name in before} == before, "committed rows must not change"
    assert after.keys() == expected.keys()
    for name, row in after.items():
        codes, expected_codes = np.frombuffer(row, np.float32), np.frombuffer(expected[name], np.float32)
        np.testing.assert_allclose(codes, expected_codes, rtol=1e-4, atol=1e-4)
