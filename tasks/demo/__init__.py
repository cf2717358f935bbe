"""The steps of `lorif demo`: its corpus, its small model, two acts (build and update), and a self-check.

An output folder comes in; a model, an index and a report go out. Open `steps.py` first.
"""
