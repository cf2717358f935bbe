"""When: the flows `build`, `attribute` and `demo`, and the `lorif` command line."""
