"""The files of `ray up`: Ray's own schema and checks, the vendors' descriptions of machines, and bad files."""

from __future__ import annotations

import copy
import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from cornerstone.errors import CornerstoneError
from cornerstone.runtime.cluster_files import check, main, problems, quantity

from .conftest import CLUSTERS, FOLDER, documents, keys, misspelt, validator

OWN = {"labels", "file_mounts", "available_node_types", "resources"}
"""Maps whose keys are names of the user's."""


@pytest.fixture(scope="module")
def ray_schema():
    """`ray-schema.json` of the installed Ray."""
    folder = Path(importlib.util.find_spec("ray").origin).parent
    return json.loads((folder / "autoscaler" / "ray-schema.json").read_text())


def violations(config, ray_schema):
    """What Ray's schema and those of the machines refuse. Ray lets unknown keys of `provider` pass: here they are refused."""
    ray_schema = copy.deepcopy(ray_schema)
    ray_schema["properties"]["provider"]["additionalProperties"] = False
    found = [error.message for error in jsonschema.Draft7Validator(ray_schema).iter_errors(config)]
    machines = validator("machines", config.get("provider", {}).get("type", "aws"))
    for group in config.get("available_node_types", {}).values():
        found += [error.message for error in machines.iter_errors(group.get("node_config", {}))]
    return found


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_ray_accepts_the_file(path, ray_schema):
    from ray.autoscaler._private.util import prepare_config, validate_config

    (config,) = documents(path)
    assert violations(config, ray_schema) == []
    validate_config(prepare_config(copy.deepcopy(config)))
    assert problems(config) == []


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_a_misspelt_key_is_found(path, ray_schema):
    (config,) = documents(path)
    names = {at[-1]: at for at in keys(config) if len(at) < 2 or at[-2] not in OWN}
    for at in names.values():
        wrong = misspelt(config, at)
        assert violations(wrong, ray_schema) or problems(wrong), at


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_no_cpu_of_the_head_and_groups_from_zero(path):
    """A cluster without jobs is its head alone, and `ray up` installs nothing on top of the image."""
    (config,) = documents(path)
    groups = config["available_node_types"]
    assert groups["head"]["resources"]["CPU"] == 0
    assert all(group.get("min_workers", 0) == 0 for group in groups.values())
    assert config["setup_commands"] == config["head_setup_commands"] == config["worker_setup_commands"] == []
    assert config["idle_timeout_minutes"] <= 15


def with_(path: Path, *changes):
    """The content of a file with `(place, ..., value)` set, or removed if the value is None."""
    (config,) = documents(path)
    config = copy.deepcopy(config)
    for *places, last, value in changes:
        place = config
        for step in places:
            place = place[step]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return config


AWS, EFA, GCP = (FOLDER / "clusters" / f"{name}.yaml" for name in ("aws", "aws_efa", "gcp"))
GROUPS, TRAIN, DECODE = "available_node_types", "cornerstone-train-on-demand", "cornerstone-decode"


@pytest.mark.parametrize(
    ("path", "changes", "said"),
    [
        (AWS, [(GROUPS, TRAIN, "node_config", "InstanceType", "m6i.16xlarge")], "train, but a m6i.16xlarge has no GPU"),
        (
            GCP,
            [(GROUPS, TRAIN, "node_config", "machineType", "n2-standard-64")],
            "train, but a n2-standard-64 has no GPU",
        ),
        (
            AWS,
            [(GROUPS, DECODE, "node_config", "InstanceType", "p4d.24xlarge")],
            "needs no GPU, but a p4d.24xlarge has 8",
        ),
        (
            AWS,
            [(GROUPS, DECODE, "node_config", "InstanceType", "m6i.17xlarge")],
            "unknown machine m6i.17xlarge; known: m6i",
        ),
        (AWS, [(GROUPS, TRAIN, "resources", "GPU", 4)], "resources say GPU 4, but a p4d.24xlarge has 8"),
        (AWS, [(GROUPS, DECODE, "resources", "CPU", 128)], "resources say CPU 128, but a m6i.16xlarge has 64"),
        (GCP, [(GROUPS, TRAIN, "resources", "CPU", 8)], "resources say CPU 8, but a a2-highgpu-8g has 96"),
        (GCP, [(GROUPS, TRAIN, "node_config", "guestAccelerators", None)], "guestAccelerators have 0 GPUs"),
        (AWS, [(GROUPS, "head", "resources", "CPU", 16)], "group head: CPU is 16, expected 0"),
        (AWS, [("max_workers", 8)], "max_workers is 8, less than 8 + 4 + 4 = 16"),
        (
            AWS,
            [("docker", "run_options", ["--env=A=b"])],
            "no authentication: whoever reaches the cluster can run code",
        ),
        (GCP, [("file_mounts", {})], "no token reaches the machines"),
        (
            AWS,
            [("head_start_ray_commands", ["ray start --head --dashboard-host=0.0.0.0"])],
            "--dashboard-host=127.0.0.1",
        ),
        (AWS, [(GROUPS, TRAIN, "labels", {})], "cornerstone.io/role is not set, expected head, decode or train"),
        (AWS, [(GROUPS, TRAIN, "labels", "ray.io/market-type", "spot")], "is spot, but its machines are on-demand"),
        (
            GCP,
            [(GROUPS, "cornerstone-train-spot", "node_config", "scheduling", {})],
            "is spot, but its machines are on-dem",
        ),
        (EFA, [(GROUPS, TRAIN, None)], "no group of workers has the label cornerstone.io/role: train"),
        (
            EFA,
            [(GROUPS, TRAIN, "node_config", "NetworkInterfaces", 3, None)],
            "on network cards [0, 1, 2], expected one",
        ),
        (
            EFA,
            [("provider", "availability_zone", "us-west-2a,us-west-2b")],
            "does not leave a zone; provider.availability",
        ),
        (EFA, [("provider", "availability_zone", None)], "does not leave a zone: name it in provider"),
        (EFA, [(GROUPS, TRAIN, "docker", None)], "the container does not see EFA"),
    ],
)
def test_a_bad_cluster_is_refused(path, changes, said, tmp_path):
    assert [one for one in problems(with_(path, *changes)) if said in one] != []
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(with_(path, *changes)))
    with pytest.raises(CornerstoneError, match=r"x\.yaml: "):
        check(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "cannot be read as YAML"),
        ("", "describes no cluster: expected a file of `ray up`"),
        ("kind: RayJob\nspec: {entrypoint: python x.py}", "describes no cluster"),
        ("just words", "describes no cluster"),
        (None, "cannot be read as YAML: .*No such file"),
    ],
)
def test_what_is_no_cluster_is_refused(text, said, tmp_path):
    if text is not None:
        (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(CornerstoneError, match=said):
        check(tmp_path / "x.yaml")


def test_the_command_checks_files(capsys, tmp_path):
    main([str(AWS), str(GCP)])
    assert f"{AWS}: 1 cluster, nothing wrong" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="cannot be read"):
        main([str(tmp_path / "none.yaml")])


def test_quantities():
    assert quantity("600Gi") == 600 * 2**30
    assert quantity("500m") == 0.5
    assert quantity(8) == 8
    for wrong in ("Gi", "8GiB", "much"):
        with pytest.raises(CornerstoneError, match="no quantity"):
            quantity(wrong)
