"""Reads the files of `infra/`: YAML documents, and the instructions of the Dockerfile."""

import json
import re
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
SCHEMAS = Path(__file__).parent / "schemas"
CREDENTIAL = re.compile(r"(KEY|SECRET|TOKEN|PASSWORD|AUTH_STRING)(_ID)?$")


def documents(path: Path) -> list[dict[str, Any]]:
    """The documents of a YAML file, with anchors resolved."""
    return list(yaml.safe_load_all(path.read_text()))


def validator(name: str, reference: str = "") -> Draft202012Validator:
    """A validator for a schema in `schemas/`, or for a definition in it; schemas refer to each other by name."""
    files = [(path.name, json.loads(path.read_text())) for path in SCHEMAS.glob("*.json")]
    registry = Registry().with_resources(
        (name, Resource.from_contents(schema, default_specification=DRAFT202012)) for name, schema in files
    )
    return Draft202012Validator({"$ref": f"{name}{reference}"}, registry=registry)


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of each line of the Dockerfile, with continued lines joined."""
    text = (INFRA / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def pinned(name: str) -> str:
    """The version of a package in constraints.txt, without distinction of case and of `-`, `_` and `.`."""
    canonical = re.escape(re.sub(r"[-_.]+", "-", name).lower())
    match = re.search(rf"^{canonical}==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    assert match is not None, f"{name} is not in constraints.txt"
    return match[1]
