"""`lorif serve`: an index on HTTP, with the model and the codes in memory; needs neither Ray nor Prefect."""
