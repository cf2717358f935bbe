"""Makes the pages of the documentation that follow from the code: reference, benchmarks and diagrams.

In: the pydantic models, the command-line parser, the Arrow schemas, the HTTP application, the results of the
benchmarks and the import contract. Out: Markdown and SVG, which `hook.py` hands to MkDocs while it builds the
site; none of it is committed. Open `hook.py` first. This package is not part of the wheel.
"""
