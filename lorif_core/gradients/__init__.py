"""Gradients: from a token batch to the codes of its examples' projected gradients.

Input: a model and a batch. Output: per example and layer a projected gradient (queries) or its code (training
examples). Data flow: `capture.py` (hooks) -> `projection.py` and `whitening.py` -> `codes.py`. Open `extract.py`
first; it connects them.
"""
