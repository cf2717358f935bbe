"""From a token batch to the codes of its examples' gradients.

In: a model and a batch. Out: per example and layer a projected gradient (queries), or its code (training
examples). The way is `capture.py` (hooks) -> `projection.py` and `whitening.py` -> `codes.py`; `extract.py`
joins them. Open that first.
"""
