"""When work runs: the Prefect flows, the `lorif` command line and the server.

Configs, files and requests come in; flows call the steps in `tasks` in order, and commands print what they return.
Open `build.py` first.
"""
