"""Invariant: shares of a scan hold every fragment of every part once, small ones last."""

from hypothesis import given
from hypothesis import strategies as st

from tasks.attribute import cut_shares


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=4))
def test_shares_hold_every_fragment_once(sizes: list[int]) -> None:
    held = [list(range(100 * number, 100 * number + size)) for number, size in enumerate(sizes)]
    shares = cut_shares(held)
    for number, fragments in enumerate(held):
        assert sorted(one for share in shares if share.part == number for one in share.fragments) == fragments
    lengths = [len(share.fragments) for share in shares]
    assert lengths == sorted(lengths, reverse=True)
    assert all(lengths)
    if lengths and sum(lengths) > 500:  # no worker waits long for the last one
        assert lengths[-1] <= max(64, sum(lengths) / 50)
