"""BM25: what matching words alone finds; the baseline that needs no model."""

import logging
from collections.abc import Sequence

import bm25s
import numpy as np

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG


def bm25_scores(texts: Sequence[str], queries: Sequence[str]) -> np.ndarray:
    """(Q, N) float32 BM25 scores of every text for every query."""
    retriever = bm25s.BM25()
    retriever.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(list(queries), stopwords="en", return_ids=False, show_progress=False)
    return np.stack([retriever.get_scores(words).astype(np.float32) for words in tokens])
