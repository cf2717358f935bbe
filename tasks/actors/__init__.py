"""Ray actors: they connect the cluster to `lorif_core`. Their state can always be rebuilt from their arguments.

Ray imports an actor's module in a process of its own, so each file imports only what its actors need. Open
`encoding.py` first.
"""
