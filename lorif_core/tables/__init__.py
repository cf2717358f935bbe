"""The index as Lance tables: schema, fragments, wave commits, receipts and generations.

In: rows of a shard, or a version to read. Out: committed versions, and blocks of codes. Open `store.py`
first; a commit to Lance is made in `datasets.py`.
"""
