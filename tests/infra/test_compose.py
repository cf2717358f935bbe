"""Invariant: the compose file is valid; services wait for health, listen on loopback and have no credentials."""

import re
from typing import Any

import pytest
from ray.scripts.scripts import start as ray_start

from tests.infra.files import CREDENTIAL, INFRA, ROOT, documents, validator

(COMPOSE,) = documents(INFRA / "compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_the_files_are_valid(name: str) -> None:
    (document,) = documents(INFRA / name)
    assert [error.message for error in validator("compose-spec.json").iter_errors(document)] == []


def test_the_schema_rejects_a_misspelt_key() -> None:
    (document,) = documents(INFRA / "compose.yaml")
    document["services"]["s3"]["healthcheck"]["intervall"] = "5s"
    assert not validator("compose-spec.json").is_valid(document)


def test_all_services_are_there() -> None:
    assert SERVICES.keys() == {"s3", "prefect-server", "ray-head", "ray-worker", "prefect-worker"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_a_healthcheck_and_waits_for_healthy_services(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD" and len(check["test"]) > 2, "the check must be a program that can fail"
    assert check.keys() >= {"interval", "timeout", "retries", "start_period"}
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"} and "healthcheck" in SERVICES[other]


def test_workers_wait_for_the_services_they_use_and_no_wait_is_circular() -> None:
    waits = {name: set(service.get("depends_on", {})) for name, service in SERVICES.items()}
    assert waits["ray-worker"] >= {"ray-head", "s3"}
    assert waits["prefect-worker"] >= {"prefect-server", "ray-head", "ray-worker", "s3"}
    started: set[str] = set()
    while ready := {name for name in waits.keys() - started if waits[name] <= started}:
        started |= ready
    assert started == SERVICES.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    for port in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
    assert "network_mode" not in SERVICES[name] and not SERVICES[name].get("privileged")


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(name: str) -> None:
    service = SERVICES[name]
    if "build" in service:
        assert service["image"] == "lorif:${LORIF_DEVICE:-cpu}"
        assert service["build"]["args"] == {"DEVICE": "${LORIF_DEVICE:-cpu}"}
        assert (INFRA / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
    else:
        assert re.fullmatch(r"[a-z/]+:\d+\.\d+", service["image"])


def test_credentials_come_from_required_variables() -> None:
    text = (INFRA / "compose.yaml").read_text()
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if CREDENTIAL.search(key):
                assert re.fullmatch(r"(lorif:)?\$\{LORIF_[A-Z0-9_]+:\?.+\}", value), f"{name}: {key}"
    required = set(re.findall(r"\$\{(\w+):\?", text))
    recipe = (INFRA / "README.md").read_text()
    assert required and all(name in recipe for name in required), "infra/README.md must create all of .env"
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_only_services_that_use_the_store_have_its_credentials() -> None:
    with_key = {name for name, service in SERVICES.items() if "AWS_SECRET_ACCESS_KEY" in service["environment"]}
    assert with_key == SERVICES.keys() - {"prefect-server"}
    for name in ("ray-head", "ray-worker", "prefect-worker"):
        assert SERVICES[name]["environment"]["RAY_AUTH_MODE"] == "token"


@pytest.mark.parametrize("name", ["ray-head", "ray-worker"])
def test_ray_accepts_the_options(name: str) -> None:
    program, command, *options = SERVICES[name]["entrypoint"]
    assert (program, command) == ("ray", "start")
    parsed = ray_start.make_context("start", list(options)).params
    assert parsed["block"] and int(parsed["node_manager_port"]) == 6380
    assert parsed["num_cpus"] == (0 if name == "ray-head" else None)
