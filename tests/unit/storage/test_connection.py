"""Invariants: data go over plain http only if the user allows it; s3fs and Lance use the same region."""

from pathlib import Path

import pytest

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.storage.connection import lance_options, s3_filesystem
from lorif_core.storage.filesystem import open_filesystem


def test_a_plain_http_endpoint_must_be_allowed() -> None:
    with pytest.raises(UserError, match=r"storage.endpoint = http://host is not encrypted"):
        open_filesystem("s3://bucket/x", StorageConfig(endpoint="http://host"))
    fs = s3_filesystem(StorageConfig(endpoint="http://host", allow_http=True))
    assert fs.endpoint_url == "http://host"


@pytest.mark.parametrize(
    ("variables", "section", "expected"),
    [
        ({}, None, "us-west-2"),
        ({"AWS_DEFAULT_REGION": "eu-central-1"}, None, "eu-central-1"),
        ({"AWS_REGION": "eu-north-1", "AWS_DEFAULT_REGION": "eu-central-1"}, None, "eu-north-1"),
        ({"AWS_REGION": "eu-north-1"}, "sa-east-1", "sa-east-1"),
    ],
)
def test_a_region_comes_from_the_section_then_the_environment_then_the_profile(
    variables: dict[str, str],
    section: str | None,
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = "aws_access_key_id = west-key\naws_secret_access_key = west-secret-key"
    (tmp_path / "config").write_text(f"[profile west]\nregion = us-west-2\n{keys}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    storage = StorageConfig(region=section, profile="west")
    assert lance_options(storage)["aws_region"] == expected
    assert s3_filesystem(storage).client_kwargs["region_name"] == expected
