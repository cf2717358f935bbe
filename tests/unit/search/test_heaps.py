"""Invariant: both ends of a ranking are those of a full sort, however rows are divided, ordered and merged."""

from copy import copy
from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lorif_core.search.heaps import Heaps
from lorif_core.search.top_k import Scored, TopK

SCORES = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 3.0])
ROWS = st.lists(st.tuples(SCORES, SCORES), min_size=1, max_size=40)


def kept(rows: list[tuple[float, str]], k: int) -> TopK:
    """What a scan of all rows at once keeps."""
    best = sorted(rows, key=lambda row: (-row[0], row[1]))[:k]
    worst = sorted(rows, key=lambda row: (row[0], row[1]))[:k]
    return TopK(k, *([Scored(*row) for row in end] for end in (best, worst)))


def divided(rows: list[tuple[float, str]], random: Random) -> list[list[tuple[float, str]]]:
    """Rows in a random order, in shares of random sizes, some of them empty."""
    order = random.sample(rows, len(rows))
    cuts = sorted(random.choices(range(len(rows) + 1), k=random.randint(0, 6)))
    return [order[first:stop] for first, stop in zip([0, *cuts], [*cuts, len(rows)], strict=True)]


@settings(max_examples=150, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=40), st.integers(1, 8), st.randoms(use_true_random=False))
def test_merging_is_a_full_sort_in_whatever_order(values: list[float], k: int, random: Random) -> None:
    """Ties are drawn on purpose; merged as a chain and as a tree, and copied, as when sent, on the way."""
    rows = [(value, f"x{number:02d}") for number, value in enumerate(values)]
    shares = [kept(share, k) for share in divided(rows, random)]
    chain = TopK(k)
    for share in random.sample(shares, len(shares)):
        chain.merge(copy(share))
    tree = shares
    while len(tree) > 1:
        one, other = (tree.pop(random.randrange(len(tree))) for _ in range(2))
        one.merge(other)
        tree.append(one)
    assert chain == tree[0] == kept(rows, k)


@settings(max_examples=150, deadline=None)
@given(ROWS, st.integers(1, 8), st.randoms(use_true_random=False))
def test_blocks_of_several_queries_keep_what_a_full_sort_does(
    values: list[tuple[float, float]], k: int, random: Random
) -> None:
    """The comparison with the k-th scores so far must let ties pass."""
    by_name = {f"x{number:02d}": scores for number, scores in enumerate(values)}
    heaps = Heaps(2, k)
    for share in divided([(0.0, name) for name in by_name], random):
        names = [name for _, name in share]
        heaps.update(np.array([by_name[name] for name in names], np.float32).reshape(-1, 2).T, names)
    for query, found in enumerate(heaps.top):
        assert found == kept([(scores[query], name) for name, scores in by_name.items()], k)
