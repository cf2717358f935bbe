"""Workers: Ray actors that take a role, and the roles, which connect the cluster to `lorif_core`.

The state of a role can always be rebuilt from its arguments. A worker imports the file of its role, so each file
imports only what its roles need. Open `encoding.py` first.
"""
