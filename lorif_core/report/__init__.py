"""Pages and files for people: the report of a batch, the explorer, scores as parquet.

In: answers to queries. Out: one HTML file, `scores.parquet` and `summary.json`. Open `page.py` first;
the templates are in `templates/`.
"""
