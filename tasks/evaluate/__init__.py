"""`lorif evaluate` on Ray: models trained once per subset, methods scored against them.

Open `shared.py` first.
"""
