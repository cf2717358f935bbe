"""Questions to an index: query -> gradient -> folded with H^-1 -> scan -> scores or strongest rows.

In: an index and queries. Out: scores, top-k, sums by source, selections, and what a score consists of. Open
`index.py` first. A query is folded in `part_reader.py`, rows are scored in `scoring.py`.
"""
