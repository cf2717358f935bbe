"""Where each step runs: Ray actors, the dispatcher that feeds them, and the Prefect tasks around them.

Configs and plans come in from `flows`; rows, curvatures, scores and generations go to storage.
Open `indexing.py` first.
"""

from tasks.environment import exempt_loopback, quiet_libraries

quiet_libraries()  # here, because a deployed flow does not run the command line
exempt_loopback()
