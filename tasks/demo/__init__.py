"""The demo, step by step: its corpus, its small model, the acts, and how it checks itself.

Open `steps.py` first.
"""
