"""The corpus: files -> shards -> records -> examples -> token batches.

In: a URI and `CorpusConfig`. Out: `ShardRef`s to hand to workers, and batches of token ids with their
labels. Open `shards.py` first. A new file format goes into `records.py`, with a reader beside `jsonl.py`
and `columnar.py`.
"""
