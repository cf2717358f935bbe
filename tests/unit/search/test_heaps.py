"""Invariant: both ends of a ranking equal those of a full sort, for any division, order and merging of rows."""

from copy import copy
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.search.heaps import Heaps
from lorif_core.search.top_k import Scored, TopK

SCORES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 3.0])
ROWS = st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=40)


def full_sort(rows: list[tuple[float, str]], k: int) -> TopK:
    """The top-k of a full sort of all rows."""
    best = sorted(rows, key=lambda row: (-row[0], row[1]))[:k]
    worst = sorted(rows, key=lambda row: (row[0], row[1]))[:k]
    return TopK(k, *([Scored(*row) for row in end] for end in (best, worst)))


def random_shares(rows: list[tuple[float, str]], random: Random) -> list[list[tuple[float, str]]]:
    """Rows in a random order, divided into shares of random sizes; some shares are empty."""
    order = random.sample(rows, len(rows))
    cuts = sorted(random.choices(range(len(rows) + 1), k=random.randint(0, 6)))
    return [order[first:stop] for first, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True)]


@settings(max_examples=150, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=40), st.integers(1, 8), st.randoms(use_true_random=False))
def test_merging_in_any_order_equals_a_full_sort(values: list[float], k: int, random: Random) -> None:
    """Scores have many ties. Shares are merged as a chain and as a tree, and copied as when workers send them."""
    rows = [(value, f"x{number:02d}") for number, value in enumerate(values)]
    shares = [full_sort(share, k) for share in random_shares(rows, random)]
    chain = TopK(k)
    for share in random.sample(shares, len(shares)):
        chain.merge(copy(share))
    tree = shares
    while len(tree) > 1:
        first, second = (tree.pop(random.randrange(len(tree))) for _ in range(2))
        first.merge(second)
        tree.append(first)
    assert chain == tree[0] == full_sort(rows, k)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 8), st.randoms(use_true_random=False))
def test_blocks_of_several_queries_equal_a_full_sort(
    values: list[tuple[float, float]], k: int, random: Random
) -> None:
    """Rows that tie with the k-th score so far must pass the comparison."""
    by_name = {f"x{number:02d}": scores for number, scores in enumerate(values)}
    heaps = Heaps(2, k)
    for share in random_shares([(0.0, name) for name in by_name], random):
        names = [name for _, name in share]
        heaps.update(np.array([by_name[name] for name in names], np.float32).reshape(-1, 2).T, names)
    for query, top in enumerate(heaps.top):
        assert top == full_sort([(scores[query], name) for name, scores in by_name.items()], k)
