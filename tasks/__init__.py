"""Where each step runs: Ray actors, the bounded dispatcher, and the Prefect tasks around them."""

from tasks.environment import quiet_libraries

quiet_libraries()  # a deployed flow comes here without the command line
