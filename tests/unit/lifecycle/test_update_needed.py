"""Invariant: an update fits a curvature again on request if it does not represent exactly the rows of its part."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lorif_core.config_file import parse_config
from lorif_core.corpus.shards import Listing
from lorif_core.curvature.woodbury import CurvatureSpec
from lorif_core.lifecycle.manifest import compare, known_files
from lorif_core.lifecycle.update import UpdatePlan
from tests.unit.lifecycle.test_manifest import inventory_of, listing, shards
from tests.unit.tables.small_store import SPEC, commit, generation, new_store


@pytest.mark.parametrize(
    ("fields", "command", "is_needed"),
    [
        ({}, "build", False),
        ({"left": 3}, "remove", True),
        ({"left": 3, "curvature_kind": "none"}, "remove", False),
        ({"sampled": 3}, "update", False),
        ({"sampled": 3}, "verify", True),
        ({}, "verify", False),
    ],
)
def test_a_curvature_is_fitted_again_on_request(
    tmp_path: Path, fields: dict[str, Any], command: str, is_needed: bool
) -> None:
    kind = fields.get("curvature_kind", "woodbury")
    plan = unchanged_plan(tmp_path, CurvatureSpec(kind), fields, command)
    raw = {"index": "i", "model": {"path": "m"}, "corpus": {"uri": "c"}, "query": {"factored": False}}
    assert plan.is_needed(parse_config({**raw, "update": {"curvature": "refit"}})) == is_needed
    assert not plan.is_needed(parse_config({**raw, "update": {"curvature": "merge"}}))


def unchanged_plan(folder: Path, settings: CurvatureSpec, fields: dict[str, Any], command: str) -> UpdatePlan:
    """The plan of an update of an unchanged corpus; `fields` are those of the part of the generation."""
    store = new_store(folder)
    commit(store, 0)
    built = generation(store, 1)
    part = replace(built.newest, curvature_json=json.dumps(asdict(settings)), **fields)
    inventory = inventory_of(shards("a", "1", 1))
    corpus: Listing = listing([], known_files(inventory, []))
    return UpdatePlan(
        base=replace(built, parts_json=json.dumps([asdict(part)]), changes_json=json.dumps({"command": command})),
        base_inventory=inventory,
        listing=corpus,
        changes=compare(inventory, corpus, remove_vanished=False),
        removals_pending=False,
        build=cast(Any, SimpleNamespace(spec=SPEC, curvature=settings, damaged=())),
        remove_vanished=False,
    )
