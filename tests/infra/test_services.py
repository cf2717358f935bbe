"""Invariant: the services of the compose file become healthy, find each other by name, and build an index.

Entrypoints, environments and healthchecks are those of the file; the S3 server is moto, because SeaweedFS is only
available as an image.
"""

import json
import secrets
import sys
from collections.abc import Iterator

import pytest
import yaml

from tests.infra.containers import Containers
from tests.infra.files import INFRA, ROOT, documents
from tests.patience import patience

pytestmark = pytest.mark.infra

_SECONDS = 180.0


@pytest.fixture(scope="module")
def services() -> Iterator[Containers]:
    """All services, healthy, started in the order of `depends_on`."""
    (compose,) = documents(INFRA / "compose.yaml")
    parts = compose["services"]
    names = ("LORIF_S3_KEY", "LORIF_S3_SECRET", "LORIF_PREFECT_PASSWORD", "LORIF_RAY_TOKEN")
    parts["s3"]["healthcheck"]["test"] = [
        "CMD",
        "python",
        "-c",
        _ANSWERS.format("http://127.0.0.1:8333/moto-api/"),
    ]
    moto = [sys.executable, "-m", "moto.server", "-H", "0.0.0.0", "-p", "8333"]
    with Containers(parts, {name: secrets.token_hex(16) for name in names}) as containers:
        waiting = list(parts)
        while waiting:
            name = next(part for part in waiting if not set(parts[part].get("depends_on", {})) & set(waiting))
            containers.start(name, moto if name == "s3" else None)
            containers.await_health(name, _SECONDS)
            waiting.remove(name)
        yield containers


_ANSWERS = 'import urllib.request; urllib.request.urlopen("{}", timeout=5)'


@pytest.fixture(scope="module")
def config(services: Containers) -> str:
    """A CONFIG over the uploaded model and corpus."""
    return services.execute("prefect-worker", "python", "-m", "tests.infra.cluster_case", "fill")


def test_the_driver_node_has_no_resources_and_actors_run_on_workers(services: Containers) -> None:
    nodes = json.loads(services.execute("prefect-worker", "python", "-m", "tests.infra.cluster_case", "look"))
    cores = nodes["all"][-1]
    assert nodes["driver"] == 0 and nodes["all"] == [0, 0, cores], "driver, head and worker"
    assert nodes["beside driver"] == [False, False] and nodes["cores of their nodes"] == [cores, cores]
    assert nodes["threads"] == [min(4, cores)] * 2, "nodes without cores must not reduce the cores of workers"


def test_a_build_from_inside_publishes_a_generation(services: Containers, config: str) -> None:
    """With the commands of docs/tutorials/on-a-cluster.md."""
    for command in ("check", "build"):
        output = services.execute("prefect-worker", "lorif", command, "-c", "/dev/stdin", "--json", stdin=config)
        result = json.loads(output.splitlines()[-1])
    assert (result["generation"], result["rows"]) == (1, 96)


def test_a_deployment_runs_in_the_worker(services: Containers, config: str) -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    name = next(each["name"] for each in deployments if each["entrypoint"] == "flows/build.py:build")
    other = {**json.loads(config), "index": "s3://lorif/indexes/deployed"}
    services.execute("prefect-worker", "prefect", "--no-prompt", "deploy", "--name", f"build/{name}")
    services.execute("prefect-worker", "prefect", "deployment", "run", f"build/{name}", "--watch",
                     "--param", f"config={json.dumps(other)}")  # fmt: skip
    output = services.execute("prefect-worker", "lorif", "status", other["index"], "--json")
    assert [generation["rows"] for generation in json.loads(output.splitlines()[-1])["generations"]] == [96]


def test_the_prefect_server_refuses_requests_without_credentials(services: Containers) -> None:
    output = services.execute(
        "ray-worker", "python", "-c",
        "import urllib.request, urllib.error\n"
        "try: urllib.request.urlopen('http://prefect-server:4200/api/flows/count', b'{}')\n"
        "except urllib.error.HTTPError as error: print(error.code)",
    )  # fmt: skip
    assert output == "401\n"


def test_ray_refuses_a_wrong_token(services: Containers) -> None:
    with pytest.raises(AssertionError, match="AuthenticationError"):
        services.execute(
            "ray-worker", "env", "RAY_AUTH_TOKEN=wrong", "ray", "status", "--address", "ray-head:6379"
        )


def test_logs_have_no_secret(services: Containers) -> None:
    for name in services.processes:
        log = services.log(name)
        assert log and not [value for value in services.variables.values() if value in log]


def test_a_worker_that_loses_its_node_ends(services: Containers) -> None:
    """So that its container is restarted. This test is the last one, because it ends the worker."""
    services.execute("prefect-worker", "python", "-c", _KILL_RAYLET)
    assert services.processes["prefect-worker"].wait(timeout=patience(60)) != 0


_KILL_RAYLET = """
import psutil
for process in psutil.process_iter():
    if process.name() == "raylet":
        process.kill()
"""
