"""How good attribution is: LDS, recall of planted sources, tail-patch, and the models that are trained for
them.

In: an EVALUATION file. Out: figures with intervals. Open `config.py` first, then `ground_truth.py`.
"""
