"""How an index changes: what a build or an update has to do, takedown, drift, publishing, garbage collection.

In: CONFIG, the corpus as it is, and the newest generation. Out: a plan, and in the end the next generation.
Open `plan.py` first.
"""
