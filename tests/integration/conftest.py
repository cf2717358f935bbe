"""Configurations of small builds, and one index that read-only tests share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from tasks.demo.object_store import MotoServer
from tests.integration.planted import ENVIRONMENT, OF_PROFILE, PROFILE
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


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment of planted credentials; it names a file with a planted profile."""
    path = tmp_path_factory.mktemp("credentials") / "credentials"
    path.write_text("\n".join([f"[{PROFILE}]", *(f"{key} = {value}" for key, value in OF_PROFILE.items()), ""]))
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_CONFIG_FILE": os.devnull}
    return {**ENVIRONMENT, **files, "RAY_AUTH_MODE": "token", "LORIF_DEBUG": "1"}
