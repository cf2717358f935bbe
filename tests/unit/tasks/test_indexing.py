"""Invariant: a shard whose worker ran out of memory is no bad input; the message names the settings."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from lorif_core.errors import DamagedFileError, IncompleteBuildError, LorifError, MemoryExhaustedError
from tasks import indexing
from tasks.dispatch import Failed
from tasks.indexing import _refuse_incomplete

PLAN = cast(Any, SimpleNamespace(damaged=()))
EXHAUSTED = MemoryExhaustedError("a worker ran out of memory; lower compute.tokens_per_batch from 64 to 32")


def failed(fault: LorifError) -> Failed:
    return Failed(SimpleNamespace(key="a.jsonl:0-99"), str(fault), fault)


def test_a_lack_of_memory_is_not_quarantined_as_a_bad_input() -> None:
    damaged = failed(DamagedFileError("b.jsonl is cut off"))
    with pytest.raises(MemoryExhaustedError, match=r"tokens_per_batch from 64 to 32, or add --publish") as raised:
        _refuse_incomplete(PLAN, [damaged, failed(EXHAUSTED)], publish_incomplete=False)
    assert raised.value.exit_code == 1 and "quarantined" not in str(raised.value)
    with pytest.raises(IncompleteBuildError, match="1 shards or files are quarantined"):
        _refuse_incomplete(PLAN, [damaged], publish_incomplete=False)


def test_a_user_who_asks_for_it_gets_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    warnings: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *values: warnings.append(text % values))
    monkeypatch.setattr(indexing, "run_log", lambda: logger)
    _refuse_incomplete(PLAN, [failed(EXHAUSTED)], publish_incomplete=True)
    assert "ran out of memory" in warnings[0]
