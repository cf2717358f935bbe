"""Invariant: weights go straight to where they stay, and no process has a copy of what a node can share."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_max_memory

from lorif_core.config import ModelConfig
from lorif_core.model import placement as module
from lorif_core.model.placement import placement
from tests.models import llama
from tests.patience import patience

GIB = 2**30


def gpus(monkeypatch: pytest.MonkeyPatch, free: list[int]) -> None:
    """Pretend that the process sees GPUs with so many free bytes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[gpu], 80 * GIB))


@pytest.mark.parametrize(
    ("free", "device_map", "device", "expected"),
    [
        ([], None, None, {"": "cpu"}),
        ([70 * GIB], None, None, {"": "cuda:0"}),
        ([70 * GIB], None, "cpu", {"": "cpu"}),
        ([70 * GIB], "auto", None, "auto"),
        ([70 * GIB, 80 * GIB], None, "cuda:1", {"": "cuda:1"}),
        ([70 * GIB, 80 * GIB], None, None, "sequential"),
    ],
)
def test_a_model_is_placed_before_it_is_loaded(
    free: list[int], device_map: str | None, device: str | None, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, free)
    assert placement(ModelConfig(path="x", device_map=device_map), device)["device_map"] == expected


@pytest.mark.parametrize(("share", "used"), [(2.0, 1), (0.7, 2), (0.5, 3)])
def test_a_model_takes_no_more_gpus_than_it_needs(
    share: float, used: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a query runs where an index was built, on one GPU or on several, without a setting."""
    model = llama(num_hidden_layers=12)
    size = sum(parameter.nbytes for parameter in model.parameters())
    gpus(monkeypatch, [int(share * size)] * 3)
    monkeypatch.setattr(module, "_GPU_SHARE", 1.0)
    memory = placement(ModelConfig(path="x"), None)["max_memory"]
    devices = infer_auto_device_map(
        model, max_memory=get_max_memory(memory), no_split_module_classes=["LlamaDecoderLayer"]
    )
    assert len(set(devices.values())) == used and "disk" not in devices.values()


_MEASURE = """
import re
import sys
from pathlib import Path
from lorif_core.config import ModelConfig, StorageConfig
from lorif_core.model.loading import load_model
def own():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(re.search("^Anonymous: +([0-9]+)", rollup, re.M)[1])
load_model(ModelConfig(path=sys.argv[1]), StorageConfig(), "cpu")
before = own()
model = load_model(ModelConfig(path=sys.argv[2]), StorageConfig(), "cpu")
print((own() - before) * 1024 / sum(p.nbytes for p in model.model.parameters()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process shares")
def test_workers_of_a_node_share_the_weights_of_a_file(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "small")
    llama(hidden_size=512, intermediate_size=4096, num_hidden_layers=4).save_pretrained(tmp_path / "large")
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "large")],
        capture_output=True, text=True, check=True, timeout=patience(120),
    )  # fmt: skip
    assert float(re.findall(r"[-\d.e]+", done.stdout)[-1]) < 0.5, "a copy has 1"
