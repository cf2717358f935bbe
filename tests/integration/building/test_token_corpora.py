"""Invariant: an index over files of tokens is that over the same tokens in jsonl, and keeps the length it chose.

If this breaks, tokens that a model was pretrained on are attributed as others, or an update cannot add rows.
"""

import json
from pathlib import Path

import pytest

from flows.build import build
from flows.update import update
from lorif_core.config import Config
from lorif_core.config_file import parse_config
from lorif_core.errors import UserError
from lorif_core.tables.store import Store
from tasks.check import check
from tests.integration.conftest import MakeConfig
from tests.integration.growing import codes_of, metadata_of
from tests.tiny_tokenizer import byte_tokenizer
from tests.unit.corpus.token_writers import write_megatron

pytestmark = pytest.mark.usefixtures("prefect_server", "ray_session")

TOKENIZER = byte_tokenizer()
TEXTS = ["the cat sees it", "the dog likes the small red bird", "a bird runs", "it sees the cat", "x" * 90]


def tokens_of(text: str) -> list[int]:
    return list(TOKENIZER(text)["input_ids"])


def config_of(make_config: MakeConfig, index: Path, corpus: Path, **keys: object) -> Config:
    section = {"uri": str(corpus), "id": None, "tokens": "tokens", "max_length": "auto", **keys}
    return make_config(index, corpus=section, curvature={"kind": "none"})


@pytest.fixture(scope="module")
def indexed(make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Config]:
    """Configs of two indexes: of Megatron's files, and of the same tokens in jsonl."""
    folder = tmp_path_factory.mktemp("tokens")
    for name in ("megatron", "lines"):
        (folder / name).mkdir()
    write_megatron(folder / "megatron" / "a.bin", [[tokens_of(text)] for text in TEXTS])
    lines = [json.dumps({"tokens": tokens_of(text)}) + "\n" for text in TEXTS]
    (folder / "lines" / "a.jsonl").write_text("".join(lines))
    megatron = config_of(make_config, folder / "index", folder / "megatron")
    lines_config = config_of(make_config, folder / "other", folder / "lines")
    for config in (megatron, lines_config):
        build(config)
    return megatron, lines_config


def test_files_of_tokens_give_the_rows_of_the_same_tokens(indexed: tuple[Config, Config]) -> None:
    codes, metadata = [codes_of(config) for config in indexed], [metadata_of(config) for config in indexed]
    for row, text in enumerate(TEXTS):
        ours, theirs = f"a.bin#{row}", f"a.jsonl#{row}"
        assert codes[0][ours] == codes[1][theirs]
        assert metadata[0][ours][3:] == metadata[1][theirs][3:] and metadata[0][ours][-1] == text


def test_the_length_is_chosen_once(indexed: tuple[Config, Config]) -> None:
    """The model has 64 positions, which are fewer than `auto` takes otherwise."""
    config, _ = indexed
    spec = Store(config.index).latest().index_spec
    assert spec.tokenisation.max_length == 64
    write_megatron(Path(config.corpus.uri) / "b.bin", [[tokens_of("the small dog")]])
    smaller = parse_config({**config.model_dump(exclude_unset=True), "compute": {"tokens_per_batch": 48}})
    with pytest.raises(UserError, match=r"tokens_per_batch \(48\) must be at least corpus.max_length \(64\)"):
        update(smaller)
    generation = update(config)
    assert generation.generation == 2 and generation.index_spec == spec and generation.rows == len(TEXTS) + 1
    finding = check(config)["checks"]["length"]
    assert "at most 64 tokens" in finding and "6 sampled records 16.7% are longer" in finding
