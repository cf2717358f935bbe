"""Search an index: query -> gradient -> gradient folded with H^-1 -> scan -> scores or strongest rows.

Input: an index and queries. Output: scores, top-k, sums by source, selections, and explanations of a score. Open
`index.py` first. `part_reader.py` folds queries; `scoring.py` scores rows.
"""
