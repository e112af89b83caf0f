"""Kubernetes manifests and the compose file: strict schemas, what Ray's autoscaler makes of them, and bad files.

KubeRay 1.7 drops fields that it does not know without a message, as the API server does with kinds of its own: so the schemas
of tests/fixtures/schemas refuse them.
"""

from __future__ import annotations

import copy
import re

import pytest

from cornerstone.runtime.cluster_files import problems

from .conftest import COMPOSE, FOLDER, MANIFESTS, documents, keys, misspelt, validator

FREE = {
    *(
        "labels",
        "annotations",
        "matchLabels",
        "nodeSelector",
        "selector",
        "data",
        "limits",
        "requests",
        "rayStartParams",
    ),
    *("clusterSelector", "environment", "services", "volumes", "depends_on"),
}
"""Maps whose keys are names of the user's."""
RAY = ("RayCluster", "RayJob")


def violations(document):
    kind = document.get("kind", "")
    schema = validator("kuberay" if kind in RAY else "kubernetes", kind if kind in RAY else "")
    return [error.message for error in schema.iter_errors(document)]


def cluster_spec(name):
    (document,) = documents(FOLDER / "kubernetes" / f"{name}.yaml")
    return document["spec"] if name == "raycluster" else document["spec"]["rayClusterSpec"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_the_manifest_is_valid(path):
    for document in documents(path):
        assert violations(document) == []


@pytest.mark.parametrize(
    "path", [path for path in MANIFESTS if path.parent.name == "kubernetes"], ids=lambda path: path.name
)
def test_a_misspelt_key_of_a_manifest_is_found(path):
    for document in documents(path):
        for at in {at[-1]: at for at in keys(document) if len(at) < 2 or at[-2] not in FREE}.values():
            assert violations(misspelt(document, at)), (document["kind"], at)


@pytest.mark.parametrize("path", [path for path in MANIFESTS if path.parent.name == "jobs"], ids=lambda path: path.name)
def test_a_misspelt_key_of_a_job_is_found(path):
    (document,) = documents(path)
    for at in (("spec",), ("spec", "entrypoint"), ("spec", "clusterSelector"), ("metadata", "name"), ("kind",)):
        assert violations(misspelt(document, at)), at


def test_the_compose_file_is_valid():
    (document,) = documents(COMPOSE)
    assert [error.message for error in validator("compose").iter_errors(document)] == []


def test_a_misspelt_key_of_the_compose_file_is_found():
    (document,) = documents(COMPOSE)
    for at in keys(document):
        if at == ("name",) or (len(at) > 1 and at[-2] in FREE):
            continue
        wrong = misspelt(document, at)
        assert list(validator("compose").iter_errors(wrong)), at


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("Deployment", lambda spec: spec["template"]["spec"]["containers"][0].update(imagePullPolice="Always")),
        ("Deployment", lambda spec: spec.update(replicas="two")),
        ("StatefulSet", lambda spec: spec["volumeClaimTemplates"][0]["spec"].update(storage="50Gi")),
        ("Service", lambda spec: spec.update(port=5000)),
        ("NetworkPolicy", lambda spec: spec.update(policyType=["Ingress"])),
    ],
)
def test_wrong_values_are_found(kind, change):
    document = next(one for one in documents(FOLDER / "kubernetes" / "mlflow.yaml") if one["kind"] == kind)
    document = copy.deepcopy(document)
    change(document["spec"])
    assert violations(document) != []


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_rays_autoscaler_reads_the_groups(name):
    """Ray's own reader of RayClusters: resources, labels and limits of each group, as it will see them."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    spec = cluster_spec(name)
    read = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "c", "namespace": "n"}, "spec": spec})
    groups = read["available_node_types"]
    assert groups["headgroup"]["resources"]["CPU"] == 0
    for group, found in groups.items():
        role = found["labels"]["cornerstone.io/role"]
        assert found["resources"].get("GPU", 0) == (8 if role == "train" else 0)
        assert found["min_workers"] == 0
        assert role in group
    assert read["idle_timeout_minutes"] == 10
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert problems(spec) == []


def test_the_queued_job_has_the_clusters_groups():
    cluster, job = cluster_spec("raycluster"), cluster_spec("rayjob")
    workers = {group["groupName"]: group for group in cluster.pop("workerGroupSpecs")}
    assert all(group == workers[group["groupName"]] for group in job.pop("workerGroupSpecs"))
    assert job == cluster


def test_pods_of_ray_are_confined():
    for spec in (cluster_spec("raycluster"), cluster_spec("rayjob")):
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            pod = group["template"]["spec"]
            assert pod["securityContext"]["runAsNonRoot"]
            (container,) = pod["containers"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["resources"]["requests"] == container["resources"]["limits"]


def changed(**changes):
    """The spec of the cluster, with values at places such as `worker_1__template__spec__volumes`."""
    spec = copy.deepcopy(cluster_spec("raycluster"))
    for path, value in changes.items():
        first, *places = path.split("__")
        group = re.fullmatch(r"worker_(\d)", first)
        place = spec["workerGroupSpecs"][int(group[1])] if group else spec
        places = places if group else [first, *places]
        for step in places[:-1]:
            place = place[int(step) if step.isdigit() else step]
        place[places[-1]] = value
    return spec


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"authOptions": None}, "no authentication: whoever reaches the cluster can run code"),
        ({"authOptions__mode": "disabled"}, "no authentication"),
        ({"headGroupSpec__rayStartParams": {}}, "rayStartParams without num-cpus"),
        (
            {"worker_1__template__spec__containers__0__resources__limits": {"cpu": "8", "memory": "600Gi"}},
            "cornerstone-train-on-demand: its label cornerstone.io/role is train, but a pod has no GPU",
        ),
        (
            {"worker_0__template__spec__containers__0__resources__limits__nvidia.com/gpu": "1"},
            "cornerstone-decode: its label cornerstone.io/role is decode, which needs no GPU, but a pod has 1",
        ),
        ({"worker_0__template__spec__containers__0__resources": {}}, "no limits of cpu and memory"),
        ({"worker_0__template__spec__volumes": []}, "no sized /dev/shm"),
        ({"worker_0__template__spec__containers__0__volumeMounts": []}, "no sized /dev/shm"),
        ({"worker_0__template__spec__volumes__0__emptyDir__sizeLimit": "110Gi"}, "/dev/shm of 110Gi counts towards"),
        ({"worker_0__labels": {}}, "cornerstone-decode: the label cornerstone.io/role is not set"),
        ({"worker_0__labels": {}}, "no group of workers has the label cornerstone.io/role: decode"),
    ],
)
def test_a_bad_cluster_is_refused(changes, said):
    assert [one for one in problems(changed(**changes)) if said in one] != []


def test_mlflow_accepts_its_options_and_the_names_of_its_service():
    """The arguments of the server, read by MLflow itself; and its check of host names, which refuses unknown services."""
    from mlflow.cli import server
    from mlflow.server.security_utils import get_default_allowed_hosts, is_allowed_host_header

    pods = [one for one in documents(FOLDER / "kubernetes" / "mlflow.yaml") if one["kind"] == "Deployment"]
    (container,) = pods[0]["spec"]["template"]["spec"]["containers"]
    (compose,) = documents(COMPOSE)
    for words in (container["command"] + container["args"], compose["services"]["mlflow"]["command"]):
        assert words[:2] == ["mlflow", "server"]
        given = server.make_context("server", words[2:]).params
        hosts = given["allowed_hosts"].split(",") if given["allowed_hosts"] else get_default_allowed_hosts()
        assert is_allowed_host_header(hosts, "127.0.0.1:5000")
        assert not is_allowed_host_header(hosts, "elsewhere.example")
        assert given["artifacts_destination"].startswith("s3://")
    settings = next(one for one in documents(FOLDER / "kubernetes" / "settings.yaml") if one["kind"] == "ConfigMap")
    host = settings["data"]["MLFLOW_TRACKING_URI"].removeprefix("http://")
    assert is_allowed_host_header(container["args"][-1].removeprefix("--allowed-hosts=").split(","), host)
    assert "MLFLOW_BACKEND_STORE_URI" in {one["name"] for one in container["env"]}


def test_no_password_is_written_down():
    """Passwords come from secrets, and from .env."""
    for path in (*MANIFESTS, COMPOSE):
        for document in documents(path):
            assert document.get("kind") != "Secret"
        for line in path.read_text().splitlines():
            if found := re.search(r"(?:PASSWORD|SECRET_ACCESS_KEY)\w*: (.+)", line):
                assert found[1].startswith("${") or "://" in found[1]


def test_everything_that_is_referred_to_exists():
    """Config maps, accounts and priorities that pods name are in settings.yaml; secrets are made by commands of the README."""
    made = {(one["kind"], one["metadata"]["name"]) for one in documents(FOLDER / "kubernetes" / "settings.yaml")}
    readme = (FOLDER / "README.md").read_text()
    text = "".join(path.read_text() for path in MANIFESTS)
    for pattern, kind in (
        (r"serviceAccountName: ([\w-]+)", "ServiceAccount"),
        (r"configMapRef: \{name: ([\w-]+)", "ConfigMap"),
        (r"priorityClassName: ([\w-]+)", "PriorityClass"),
    ):
        found = set(re.findall(pattern, text))
        assert found
        assert {(kind, name) for name in found} <= made
    secrets = set(re.findall(r"secretName: ([\w-]+)|secretKeyRef: \{name: ([\w-]+)", text))
    for name in {first or second for first, second in secrets}:
        assert f"kubectl create secret generic {name} " in readme
