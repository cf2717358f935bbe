"""The corpus: files -> shards -> records -> examples -> token batches.

In: a URI and `CorpusConfig`. Out: `ShardRef`s for the workers, and batches of token ids with their labels. Open
`shards.py` first; `files.py` says which files are read. To add a file format, register it in `records.py` and put
its reader beside `jsonl.py` and `columnar.py`, or if it holds token ids behind the protocol of `token_files.py`.
"""
