"""The commands of `lorif`, one file per group: parsed options come in, a `Result` as text and JSON goes out.

Open `building.py` first. `COMMANDS` names the file of each command; a file is imported when its command runs.
"""

COMMANDS = {
    "demo": "building",
    "check": "building",
    "init": "starting",
    "build": "building",
    "update": "building",
    "attribute": "asking",
    "query": "asking",
    "select": "asking",
    "serve": "asking",
    "evaluate": "evaluating",
    "status": "maintenance",
    "remove": "maintenance",
    "rollback": "maintenance",
    "gc": "maintenance",
    "compact": "maintenance",
    "verify": "maintenance",
}
"""Command -> module of this package that defines `run_<command>`."""

EXTRAS: dict[str, tuple[str, ...]] = {
    "demo": ("build",),
    "check": ("build",),
    "build": ("build",),
    "update": ("build",),
    "attribute": ("build",),
    "evaluate": ("build", "evaluate"),
    "serve": ("serve",),
    "remove": ("build",),
}
"""Command -> the extras of the distribution without whose packages it does not run."""
