"""Configs of small builds, one index that read-only tests share, a filled bucket, and planted credentials."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorif_core.config import Config
from lorif_core.config_file import parse_config
from tasks.demo.object_store import MotoServer
from tests.integration.planted import ENVIRONMENT_CREDENTIALS, PROFILE, PROFILE_CREDENTIALS
from tests.integration.s3 import fill_bucket

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="session")
def make_config(model_folder: Path, corpus_file: Path) -> MakeConfig:
    """A function that makes a Config over the tiny model and corpus and merges in the sections that it gets."""

    def make(index: Path, **sections: Any) -> Config:
        raw: dict[str, Any] = {
            "index": str(index),
            "model": {"path": str(model_folder), "layers": "all"},
            "corpus": {"uri": str(corpus_file), "id": "id", "max_length": 64},
            "projection": {"kind": "random", "factor": 4},
            "code": {"kind": "rank", "rank": 1, "dtype": "float16"},
            "curvature": {"kind": "woodbury", "rank": 16},
            "compute": {"workers": 1, "tokens_per_batch": 2048},  # each takes seconds to start
        }
        for name, section in sections.items():
            raw[name] = {**raw.get(name, {}), **section} if isinstance(section, dict) else section
        return parse_config(raw)

    return make


@pytest.fixture(scope="session")
def built(
    make_config: MakeConfig, prefect_server: None, ray_session: None, tmp_path_factory: pytest.TempPathFactory
) -> Config:
    """The config of an index that was built once, with two workers and float32 codes for exact comparisons."""
    from flows.build import build

    folder = tmp_path_factory.mktemp("built")
    config = make_config(folder / "index", code={"dtype": "float32"}, compute={"workers": 2})
    build(config)
    return config


@pytest.fixture(scope="session")
def s3_server(moto: MotoServer, model_folder: Path) -> MotoServer:
    """A moto server whose bucket has a tiny model and two corpora of small shards."""
    fill_bucket(moto, model_folder, (12, 44))
    return moto


@pytest.fixture(scope="session")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables with planted credentials; they also name a file with a planted profile."""
    path = tmp_path_factory.mktemp("credentials") / "credentials"
    path.write_text(
        "\n".join([f"[{PROFILE}]", *(f"{key} = {value}" for key, value in PROFILE_CREDENTIALS.items()), ""])
    )
    files = {"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_CONFIG_FILE": os.devnull}
    return {**ENVIRONMENT_CREDENTIALS, **files, "RAY_AUTH_MODE": "token", "LORIF_DEBUG": "1"}
