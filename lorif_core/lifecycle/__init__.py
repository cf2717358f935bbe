"""How an index changes: the plans of builds and updates, takedown, drift, publishing and garbage collection.

Input: CONFIG, the current corpus and the newest generation. Output: a plan, and finally the next generation.
Start with `plan.py`.
"""
