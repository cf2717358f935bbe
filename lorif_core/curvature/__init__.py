"""The preconditioner: the curvature H of the stored gradients, and the folding of H^-1 into queries.

Input: sums over rows from a scan. Output: `LayerCurvature`, whose `fold` applies H^-1 to queries. Open
`randomized_svd.py` first; the damping rules are in `woodbury.py`.
"""
