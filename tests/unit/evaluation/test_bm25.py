"""Invariant: BM25 scores texts with the query's words highest, and is 0 if text or query has no words."""

import numpy as np

from lorif_core.evaluation.bm25 import bm25_scores


def test_texts_with_rare_shared_words_rank_first() -> None:
    scores = bm25_scores(["a cat sees a dog", "a dog runs", "dog and cat and zebra"], ["zebra", "cat dog"])
    assert scores.shape == (2, 3) and scores.dtype == np.float32
    assert scores[0].argmax() == 2 and scores[0, 2] > 0 and not scores[0, :2].any()
    assert scores[1, 0] > scores[1, 1] > 0


def test_without_words_nothing_matches() -> None:
    scores = bm25_scores(["a cat sees", "{}", ""], ["{}", "", "zebra", "cat"])
    assert not scores[:3].any() and scores[3].tolist() == [scores[3, 0], 0, 0]
    assert not bm25_scores(["{}", ";"], ["cat", "{}"]).any()
