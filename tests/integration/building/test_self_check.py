"""Invariant: a build whose capture differs from autograd stops before its first row and says what to do."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LongcatFlashConfig, LongcatFlashForCausalLM

from lorif_core.config import Config, StorageConfig
from lorif_core.tables.store import Store
from tests.integration.conftest import MakeConfig
from tests.integration.lorif import run
from tests.tiny_tokenizer import VOCAB, byte_tokenizer


@pytest.fixture(scope="module")
def router_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that reads its router's weight without calling the router; its routing hides this from a dry run."""
    torch.manual_seed(0)
    config = LongcatFlashConfig(
        vocab_size=VOCAB, hidden_size=24, ffn_hidden_size=40, expert_ffn_hidden_size=16, num_layers=1,
        num_attention_heads=2, q_lora_rank=12, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=8, head_dim=4, n_routed_experts=4, zero_expert_num=1, moe_topk=2, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("router")
    LongcatFlashForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def written(config: Config, folder: Path) -> str:
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(exclude_unset=True)))
    return str(folder / "config.yaml")


@pytest.mark.parametrize("whiten", [False, True])
def test_a_build_stops_before_its_first_row(
    whiten: bool, router_model: Path, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    prefect_server: None, ray_session: None,
) -> None:  # fmt: skip
    config = make_config(
        tmp_path / "index", model={"path": str(router_model)}, projection={"kind": "random", "whiten": whiten}
    )
    code, _, err = run(capsys, "build", "-c", written(config, tmp_path))
    assert code == 2 and "mlp.router.classifier" in err and "model.exclude" in err
    store = Store(config.index, StorageConfig())
    assert store.rows.spec() is None or store.rows.inventory().rows == 0


def test_check_finds_it_too_and_the_advice_helps(
    router_model: Path, make_config: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path / "index", model={"path": str(router_model)})
    path = written(config, tmp_path)
    code, _, err = run(capsys, "check", "-c", path)
    assert code == 2 and "mlp.router.classifier" in err
    advice = re.search(r"model\.exclude: (\S+)", err)
    assert advice is not None
    code, _, err = run(capsys, "check", "-c", path, f"model.exclude={advice[1]}")
    assert code == 0, err
