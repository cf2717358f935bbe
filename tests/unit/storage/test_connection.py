"""Invariant: data go over plain http only if the user allows it."""

import pytest

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.storage.connection import s3_filesystem
from lorif_core.storage.filesystem import open_filesystem


def test_a_plain_http_endpoint_must_be_allowed() -> None:
    with pytest.raises(UserError, match=r"storage.endpoint = http://host is not encrypted"):
        open_filesystem("s3://bucket/x", StorageConfig(endpoint="http://host"))
    fs = s3_filesystem(StorageConfig(endpoint="http://host", allow_http=True))
    assert fs.endpoint_url == "http://host"
