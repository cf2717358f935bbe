"""Invariant: a shard whose worker ran out of memory is no bad input; the message names the settings."""

import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lorif_core.errors import DamagedFileError, IncompleteBuildError, LorifError, MemoryExhaustedError
from lorif_core.lifecycle.indexing import FailedShard, refuse_incomplete

PLAN = cast(Any, SimpleNamespace(damaged=()))
EXHAUSTED = MemoryExhaustedError("a worker ran out of memory; lower compute.tokens_per_batch from 64 to 32")
LOG = logging.getLogger(__name__)


def failed(fault: LorifError) -> FailedShard:
    return FailedShard("a.jsonl:0-99", str(fault), fault)


def test_a_lack_of_memory_is_not_quarantined_as_a_bad_input() -> None:
    damaged = failed(DamagedFileError("b.jsonl is cut off"))
    with pytest.raises(MemoryExhaustedError, match=r"tokens_per_batch from 64 to 32, or add --publish") as raised:
        refuse_incomplete(PLAN, [damaged, failed(EXHAUSTED)], False, LOG)
    assert raised.value.exit_code == 1 and "quarantined" not in str(raised.value)
    with pytest.raises(IncompleteBuildError, match="1 shards or files are quarantined"):
        refuse_incomplete(PLAN, [damaged], False, LOG)


def test_a_user_who_asks_for_it_gets_the_rest(caplog: pytest.LogCaptureFixture) -> None:
    refuse_incomplete(PLAN, [failed(EXHAUSTED)], True, LOG)
    assert "ran out of memory" in caplog.text
