"""The demo's self-check: does attribution find a passage itself, and passages of the same topic?"""

import logging
import math
from collections.abc import Mapping, Sequence

import bm25s

from lorif_core.errors import LorifError

logging.getLogger("bm25s").setLevel(logging.WARNING)  # bm25s sets its own level to DEBUG


def self_retrieval(top_ids: Sequence[Sequence[str]], own_ids: Sequence[str]) -> float:
    """Share of queries, each of them a training example, whose top proponent is the query itself.

    Args:
        top_ids: ids of the proponents of each query, best first.
        own_ids: id of each query.

    Raises:
        LorifError: there are no queries, or not as many rankings as ids.
    """
    _require_pairs(len(top_ids), len(own_ids))
    correct = sum(ids[:1] == [own] for ids, own in zip(map(list, top_ids), own_ids, strict=True))
    return correct / len(own_ids)


def same_topic_at_k(
    hits: Sequence[Sequence[str]],
    query_topics: Sequence[set[str]],
    topics_of: Mapping[str, set[str]],
    k: int = 5,
) -> float:
    """Share of queries for which at least one of the first k hits has a topic of the query.

    Args:
        hits: ids of training examples for each query, best first.
        topics_of: the topics of every training example.

    Raises:
        LorifError: there are no queries, or not as many rankings as queries.
    """
    _require_pairs(len(hits), len(query_topics))
    correct = sum(
        any(topics & topics_of[example_id] for example_id in ids[:k])
        for ids, topics in zip(hits, query_topics, strict=True)
    )
    return correct / len(hits)


def chance_same_topic_at_k(
    query_topics: Sequence[set[str]], topics_of: Mapping[str, set[str]], k: int = 5
) -> float:
    """The expectation of `same_topic_at_k` if the hits are k distinct training examples drawn at random.

    If m of n examples share a topic with the query, P(at least one hit) = 1 - C(n - m, k) / C(n, k).

    Raises:
        LorifError: there are no queries.
    """
    _require_pairs(len(query_topics), len(query_topics))
    total = len(topics_of)
    drawn = min(k, total)
    chances = []
    for topics in query_topics:
        sharing = sum(bool(topics & others) for others in topics_of.values())
        chances.append(1 - math.comb(total - sharing, drawn) / math.comb(total, drawn))
    return sum(chances) / len(chances)


def bm25_hits(
    corpus_texts: Sequence[str], corpus_ids: Sequence[str], queries: Sequence[str], k: int
) -> list[list[str]]:
    """Ids of the k best training texts for each query by BM25 (word overlap), a baseline without a model.

    Raises:
        LorifError: there are no texts, or not as many ids as texts.
    """
    _require_pairs(len(corpus_texts), len(corpus_ids))
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(corpus_texts), stopwords="en", show_progress=False), show_progress=False)
    ranked, _ = retriever.retrieve(
        bm25s.tokenize(list(queries), stopwords="en", show_progress=False),
        k=min(k, len(corpus_ids)),
        show_progress=False,
    )
    return [[corpus_ids[row] for row in rows] for rows in ranked]


def _require_pairs(first: int, second: int) -> None:
    if first != second:
        raise LorifError(f"the demo's self-check got {first} results for {second} queries")
    if first == 0:
        raise LorifError("the demo's self-check needs at least one query")
