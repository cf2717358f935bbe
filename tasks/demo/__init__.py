"""The steps of `lorif demo`: its corpus, its small model, two acts, and a test that trains the model again.

The first act builds an index; in the second one the model trains on, its training is recorded, and the index is
updated. An output folder comes in; a model, an index and a report go out. Open `steps.py` first.
"""
