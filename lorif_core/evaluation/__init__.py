"""Measures of attribution quality: LDS, recall of planted sources and tail-patch, with the training they need.

In: an EVALUATION file. Out: values with confidence intervals. Open `config.py` first, then `ground_truth.py`.
"""
