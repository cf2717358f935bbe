"""`lorif serve`: an HTTP server for questions to an index; it needs neither Ray nor Prefect.

JSON questions come in; ranked training examples go out as JSON or HTML. The model and the codes stay in memory.
Open `app.py` first.
"""
