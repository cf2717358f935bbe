"""The commands of `lorif`, one file per group: parsed options come in, a `Result` as text and JSON goes out.

Open `building.py` first. `COMMANDS` names the file of each command; a file is imported when its command runs.
"""

COMMANDS = {
    "demo": "building",
    "check": "building",
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
