"""The preconditioner: curvature of the stored gradients, and how a query is folded with it.

In: sums over rows, from a scan. Out: `LayerCurvature`, whose `fold` applies H^-1 to queries. Open
`randomized_svd.py` first; the damping rules are in `woodbury.py`.
"""
