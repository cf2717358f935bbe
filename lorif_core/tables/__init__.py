"""The index as Lance tables: schema, fragments, wave commits, receipts and generations.

Input: the rows of a shard, or a version to read. Output: committed versions and blocks of codes. Start with
`store.py`; `datasets.py` makes the commits to Lance.
"""
