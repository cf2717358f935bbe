"""BM25 scores from matching words: a baseline that needs no model."""

import logging
from collections.abc import Sequence

import bm25s
import numpy as np

logging.getLogger("bm25s").setLevel(logging.WARNING)  # the library sets its logger to DEBUG


def bm25_scores(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """(Q, N) float32 BM25 scores of every text for every query; 0 where the text or the query has no words."""
    scores = np.zeros((len(queries), len(texts)), np.float32)
    words = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    if not any(words):
        return scores
    retriever = bm25s.BM25()
    retriever.index(words, show_progress=False)
    query_words = bm25s.tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
    for row, words_of_query in enumerate(query_words):
        if words_of_query:
            scores[row] = retriever.get_scores(words_of_query)
    return scores
