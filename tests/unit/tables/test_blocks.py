"""Invariant: joined batches have the same rows in the same order; none is empty or joined beyond the limit."""

from itertools import pairwise

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lorif_core.tables.blocks import join_batches


@given(sizes=st.lists(st.integers(0, 9), max_size=12), rows=st.integers(1, 20))
def test_joined_batches_have_the_same_rows(sizes: list[int], rows: int) -> None:
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    batches = [
        pa.record_batch({"x": pa.array(range(start, start + size), pa.int64())})
        for start, size in zip(starts, sizes, strict=True)
    ]
    joined = list(join_batches(iter(batches), rows))
    assert [value for batch in joined for value in batch.column("x").to_pylist()] == list(range(sum(sizes)))
    assert all(0 < batch.num_rows <= max(rows, *sizes) for batch in joined)
    for first, second in pairwise(batch.num_rows for batch in joined):
        assert first + second > rows or 2 * max(first, second) >= rows, "two batches should have been joined"
