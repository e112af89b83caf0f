"""The container image: hadolint, versions, user, and what a build sees of the project."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import COMPOSE, FOLDER, REPOSITORY, documents

DOCKERFILE = FOLDER / "Dockerfile"
PINS = dict(re.findall(r"^([\w.\-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE))


def instructions(text: str) -> list[tuple[str, str]]:
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def lint(path: Path) -> subprocess.CompletedProcess:
    folder = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    program = shutil.which("hadolint", path=folder)
    assert program, "hadolint is missing: it is among the test dependencies (make install)"
    return subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True)


def test_hadolint_finds_nothing():
    result = lint(DOCKERFILE)
    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("pip install --constraint /tmp/constraints.txt mlflow", "pip install mlflow", "DL3013"),
        ("FROM python:3.11.14-slim-bookworm", "FROM python:latest", "DL3007"),
        ("WORKDIR /home/ray/cornerstone\n# Libraries", "WORKDIR cornerstone\n# Libraries", "DL3000"),
        ("COPY experiments experiments", "COPPY experiments experiments", "unexpected 'C"),
    ],
)
def test_hadolint_finds_mistakes(right, wrong, rule, tmp_path):
    assert right in DOCKERFILE.read_text()
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.read_text().replace(right, wrong))
    result = lint(tmp_path / "Dockerfile")
    assert result.returncode != 0
    assert rule in result.stdout + result.stderr


def test_libraries_have_the_versions_of_the_constraints():
    """Each installation is bound to constraints.txt, which pins every package that it names; the project itself has no pin."""
    text = DOCKERFILE.read_text()
    installs = re.findall(r"pip install ([^&\n]+)", text)
    assert len(installs) == 3
    assert sum("--constraint /tmp/constraints.txt" in one for one in installs) == 2
    assert [one.split() for one in installs if "--constraint" not in one] == [["--no-deps", "."]]
    named = {word for one in installs for word in one.split()[2:] if re.fullmatch(r"[\w-]+", word)}
    assert {"mlflow", "boto3", "psycopg2-binary"} <= named
    assert named <= PINS.keys()
    for name, version in re.findall(r"([\w-]+)==([\w.]+)", text):
        assert PINS[name] == version
    project = (REPOSITORY / "pyproject.toml").read_text()
    (cloud,) = re.findall(r"^cloud = \[(.*)\]$", project, re.MULTILINE)
    assert {re.match(r"[\w-]+", one)[0] for one in re.findall(r'"(.*?)"', cloud)} <= PINS.keys()


def test_every_version_of_ray_is_the_one_that_is_pinned():
    for path in FOLDER.rglob("*.yaml"):
        for version in re.findall(r"rayVersion: (\S+)", path.read_text()):
            assert version == PINS["ray"], path


def test_images_end_as_another_user_than_root():
    stages = re.split(r"^FROM ", DOCKERFILE.read_text(), flags=re.MULTILINE)[1:]
    users = {}
    for stage in stages:
        base, _, name = stage.splitlines()[0].split()
        found = [value for word, value in instructions("FROM " + stage) if word == "USER"]
        users[name] = found[-1] if found else users.get(base, "0")
    assert {users[name] for name in ("mlflow", "cornerstone", "cornerstone-efa")} == {"1000"}
    (uid,) = re.findall(r"useradd --uid (\d+)", DOCKERFILE.read_text())
    for spec in re.findall(
        r"runAsUser: (\d+), runAsGroup: \d+, fsGroup: \d+}\n", (FOLDER / "kubernetes/raycluster.yaml").read_text()
    ):
        assert spec == uid


def test_every_image_that_files_name_is_built():
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE.read_text(), re.MULTILINE))
    built = dict(re.findall(r"--target (\S+) +--tag (\S+) ", DOCKERFILE.read_text()))
    assert built.keys() < targets
    named = {
        image for path in FOLDER.rglob("*.yaml") for image in re.findall(r"ghcr\.io/example/[\w:.-]+", path.read_text())
    }
    assert named == set(built.values())
    (compose,) = documents(COMPOSE)
    assert built[compose["services"]["mlflow"]["build"]["target"]] == compose["services"]["mlflow"]["image"]


def test_what_is_copied_exists_and_is_in_the_context():
    """The context is everything that Dockerfile.dockerignore does not leave out; data beside the code are left out."""
    kept = [line[2:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!/")]
    copied = {
        source
        for word, value in instructions(DOCKERFILE.read_text())
        if word == "COPY"
        for source in value.split()[:-1]
    }
    assert copied == set(kept)
    assert all((REPOSITORY / name).exists() for name in copied)
