"""Invariant: a refused conditional put is recognised from every response with which stores refuse it."""

import pytest

from lorif_core.config import StorageConfig
from lorif_core.errors import LorifError
from lorif_core.storage.objects import Objects
from tasks.demo.object_store import MotoServer
from tests.integration.s3 import BUCKET
from tests.servers.proxy import Fault, FaultProxy


@pytest.mark.parametrize(("status", "code"), [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict")])
def test_a_refused_put_is_distinguished_from_a_failed_one(s3_server: MotoServer, status: int, code: str) -> None:
    with FaultProxy(s3_server.url) as proxy:
        storage = StorageConfig(endpoint=proxy.url, region="us-east-1", allow_http=True)
        objects = Objects(f"s3://{BUCKET}/conditional-{status}", storage)
        assert objects.create("x.json", {"by": "own"}) and not objects.create("x.json", {"by": "other"})
        proxy.fault = Fault("answer", match="^PUT", status=status, code=code)
        assert not objects.create("x.json", {"by": "other"}), "the object of another process exists"
        assert objects.create("x.json", {"by": "own"}), "the own write, whose response was lost"
        proxy.fault = Fault("answer", match="^PUT", status=403, code="AccessDenied")
        with pytest.raises(LorifError, match="may not be written"):
            objects.create("y.json", {"by": "own"})
