"""Configurations of small builds, and one index that read-only tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorif_core.config import Config, parse_config
from tasks.demo_store import MotoServer
from tests.integration.s3 import make_place

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="session")
def make_config(model_folder: Path, corpus_file: Path) -> MakeConfig:
    """A Config over the tiny model and corpus; sections given as keywords are merged in."""

    def make(index: Path, **sections: Any) -> Config:
        raw: dict[str, Any] = {
            "index": str(index),
            "model": {"path": str(model_folder)},
            "corpus": {"uri": str(corpus_file), "id": "id", "max_length": 64},
            "projection": {"kind": "random", "factor": 4},
            "code": {"kind": "rank", "rank": 1, "dtype": "float16"},
            "curvature": {"kind": "woodbury", "rank": 16},
            "compute": {"workers": 2, "tokens_per_batch": 2048},
        }
        for name, section in sections.items():
            raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section
        return parse_config(raw)

    return make


@pytest.fixture(scope="session")
def built(
    make_config: MakeConfig, prefect_server: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Config:
    """The config of an index that was built once, by the flow, with two workers; float32, to compare exactly."""
    from flows.build import build

    config = make_config(tmp_path_factory.mktemp("built") / "index", code={"dtype": "float32"})
    build(config)
    return config


@pytest.fixture(scope="session")
def s3_place(moto: MotoServer, model_folder: Path) -> MotoServer:
    """moto with a bucket that holds a tiny model and two corpora of small shards."""
    make_place(moto, model_folder, (12, 44))
    return moto
