"""Where each step runs: Ray actors, the bounded dispatcher, and the Prefect tasks around them."""
