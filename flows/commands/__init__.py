"""The commands of `lorif`, a file a group: parsed options come in, a `Result` for people and `--json` goes out.

Open `building.py` first. `COMMANDS` says in which file a command is; a file is imported when its command runs.
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
}
"""Command -> module of this package, which has it as `run_<command>`."""
