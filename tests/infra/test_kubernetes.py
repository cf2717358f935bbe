"""Invariant: the manifests are valid, their references exist, and no pod has more rights than it needs."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.infra.files import CREDENTIAL, INFRA, ROOT, documents, pinned, validator

FOLDER = INFRA / "kubernetes"
(KUSTOMIZATION,) = documents(FOLDER / "kustomization.yaml")
OBJECTS = [manifest for name in KUSTOMIZATION["resources"] for manifest in documents(FOLDER / name)]
NAMES = [f"{manifest['kind']}/{manifest['metadata']['name']}" for manifest in OBJECTS]
SCHEMAS = {
    "Namespace": "io.k8s.api.core.v1.Namespace",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
    "Service": "io.k8s.api.core.v1.Service",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "Deployment": "io.k8s.api.apps.v1.Deployment",
}


def of_kind(kind: str) -> Iterator[dict[str, Any]]:
    return (manifest for manifest in OBJECTS if manifest["kind"] == kind)


def pods() -> dict[str, dict[str, Any]]:
    """Pod templates by name."""
    (cluster,) = of_kind("RayCluster")
    groups = cluster["spec"]["workerGroupSpecs"]
    return {
        **{deployment["metadata"]["name"]: deployment["spec"]["template"] for deployment in of_kind("Deployment")},
        "ray-head": cluster["spec"]["headGroupSpec"]["template"],
        **{f"ray-{group['groupName']}": group["template"] for group in groups},
    }


PODS = pods()


def container(name: str) -> dict[str, Any]:
    (only,) = PODS[name]["spec"]["containers"]
    return only


def problems(manifest: dict[str, Any]) -> list[str]:
    if manifest["kind"] == "RayCluster":
        schema = validator("raycluster.json")
    else:
        schema = validator("kubernetes.json", f"#/$defs/{SCHEMAS[manifest['kind']]}")
    return [f"{error.json_path}: {error.message}" for error in schema.iter_errors(manifest)]


@pytest.mark.parametrize("manifest", OBJECTS, ids=NAMES)
def test_an_object_is_valid(manifest: dict[str, Any]) -> None:
    assert problems(manifest) == []


def test_the_schema_rejects_misspelt_keys_and_wrong_types() -> None:
    (path,) = FOLDER.glob("ray-cluster.yaml")
    (cluster,) = documents(path)
    cluster["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["readinessProb"] = {}
    assert len(problems(cluster)) == 1
    cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    assert len(problems(cluster)) == 2


def test_kustomize_uses_every_file_and_sets_every_image() -> None:
    files = {path.name for path in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    set_by_kustomize = {image["name"] for image in KUSTOMIZATION["images"]}
    assert {container(name)["image"] for name in PODS} == set_by_kustomize
    assert [manifest["metadata"]["name"] for manifest in of_kind("Namespace")] == [KUSTOMIZATION["namespace"]]


@pytest.mark.parametrize("name", PODS)
def test_a_pod_is_restricted_and_has_probes(name: str) -> None:
    spec, only = PODS[name]["spec"], container(name)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 1000
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert only["readinessProbe"] and only["livenessProbe"]
    assert "memory" in only["resources"]["limits"] and {"cpu", "memory"} <= only["resources"]["requests"].keys()


@pytest.mark.parametrize("name", PODS)
def test_credentials_come_from_secrets(name: str) -> None:
    for variable in container(name).get("env", []):
        if CREDENTIAL.search(variable["name"]):
            assert "secretKeyRef" in variable["valueFrom"], variable["name"]
    assert not list(of_kind("Secret"))


def test_references_exist() -> None:
    accounts = {account["metadata"]["name"] for account in of_kind("ServiceAccount")}
    claims = {claim["metadata"]["name"] for claim in of_kind("PersistentVolumeClaim")}
    for template in PODS.values():
        assert template["spec"].get("serviceAccountName", "lorif") in accounts
        volumes = {volume["name"]: volume for volume in template["spec"].get("volumes", [])}
        mounts = template["spec"]["containers"][0].get("volumeMounts", [])
        assert {mount["name"] for mount in mounts} == volumes.keys()
        named = {volume["persistentVolumeClaim"]["claimName"] for volume in volumes.values() if
                 "persistentVolumeClaim" in volume}  # fmt: skip
        assert named <= claims
    for deployment in of_kind("Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert deployment["spec"]["selector"]["matchLabels"] == labels
    for service in of_kind("Service"):
        assert service["spec"]["selector"] in [template["metadata"]["labels"] for template in PODS.values()]


def test_the_cluster_has_the_pinned_ray_and_needs_a_token() -> None:
    (cluster,) = of_kind("RayCluster")
    assert cluster["spec"]["rayVersion"] == pinned("ray")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert cluster["spec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_only_the_gpu_group_has_gpus() -> None:
    (cluster,) = of_kind("RayCluster")
    assert [group["groupName"] for group in cluster["spec"]["workerGroupSpecs"]] == ["cpu", "gpu"]
    assert container("ray-gpu")["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container("ray-gpu")["image"] == "lorif-cuda" and container("ray-cpu")["image"] == "lorif-cpu"
    assert "nvidia.com/gpu" not in container("ray-cpu")["resources"]["limits"]


def test_probes_use_the_ports_of_ray() -> None:
    (cluster,) = of_kind("RayCluster")
    for group in cluster["spec"]["workerGroupSpecs"]:
        port = int(group["rayStartParams"]["node-manager-port"])
        for probe in ("readinessProbe", "livenessProbe"):
            assert container(f"ray-{group['groupName']}")[probe]["grpc"] == {"port": port}
    assert {port["containerPort"] for port in container("ray-head")["ports"]} == {6379}
    assert container("ray-head")["readinessProbe"]["grpc"] == {"port": 6379}
    assert "RAY_NODE_MANAGER_PORT:-6380" in (INFRA / "join-ray.sh").read_text()
    assert container("prefect-worker")["livenessProbe"]["grpc"] == {"port": 6380}


def test_the_prefect_worker_joins_the_cluster() -> None:
    (cluster,) = of_kind("RayCluster")
    worker = container("prefect-worker")
    variables = {variable["name"]: variable for variable in worker["env"]}
    assert worker["command"][:3] == ["join-ray", "--", "prefect"]
    assert variables["RAY_ADDRESS"]["value"] == f"{cluster['metadata']['name']}-head-svc:6379"
    token = variables["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
    assert token == {"name": cluster["metadata"]["name"], "key": "auth_token"}, "KubeRay uses these names"
    assert variables["RAY_AUTH_MODE"]["value"] == "token"
    (server,) = of_kind("Service")
    host = f"http://{server['metadata']['name']}:{server['spec']['ports'][0]['port']}/api"
    assert variables["PREFECT_API_URL"]["value"] == host


def test_only_pods_of_the_namespace_may_connect() -> None:
    (policy,) = of_kind("NetworkPolicy")
    assert policy["spec"]["podSelector"] == {} and set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {}}]}]


def test_the_documentation_names_the_secrets() -> None:
    guide = (ROOT / "docs" / "how-to" / "cloud.md").read_text()
    secrets = {
        variable["valueFrom"]["secretKeyRef"]["name"]
        for name in PODS
        for variable in container(name).get("env", [])
        if "valueFrom" in variable
    }
    assert secrets == {"lorif", "lorif-prefect"} and "lorif-prefect" in guide and "auth-string" in guide
