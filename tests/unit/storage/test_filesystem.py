"""Invariant: only local paths and s3:// are opened, and a rewritten file gets another tag."""

import pytest

from lorif_core.config import StorageConfig
from lorif_core.errors import UserError
from lorif_core.storage.filesystem import entity_tag, open_filesystem


@pytest.mark.parametrize("uri", ["gs://bucket/x", "https://host/x.jsonl"])
def test_other_schemes_are_refused(uri: str) -> None:
    with pytest.raises(UserError) as caught:
        open_filesystem(uri, StorageConfig())
    assert f"{uri} has the scheme {uri.split(':')[0]}://, which is not supported" in str(caught.value)


def test_entity_tags() -> None:
    assert entity_tag({"ETag": '"0123abc-2"'}) == "0123abc-2"
    assert entity_tag({"mtime": 1.5}) == f"{1_500_000_000:x}"
    assert entity_tag({"mtime": 1.5, "mtime_ns": 17}) == "11"
