"""The steps of `lorif evaluate` on Ray: train models on subsets, score every method, compare both.

An evaluation config comes in; tables and plots go to the output folder. Open `shared.py` first.
"""
