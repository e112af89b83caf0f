"""Submitting a job to a cluster: what of this folder and of this environment travels there, and what is checked before."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cornerstone.errors import CornerstoneError, first_line
from cornerstone.runtime.cluster import Say, listens
from cornerstone.runtime.following import attend
from cornerstone.runtime.git import git_state_of
from cornerstone.runtime.home import VARIABLE as HOME
from cornerstone.runtime.probe import TRACKING, Report, is_server
from cornerstone.secrets import redacted

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENVIRONMENT = Path("ray_jobs/runtime_env.yaml")
MEBIBYTE = 1 << 20
NAMED = 5  # files in the message about a package that is too large
PROBE_SECONDS = 180.0  # for the probe to run: the cluster may have to unpack the code first
AGENT_SECONDS = 30.0  # in which a new cluster becomes able to take jobs
POLL_EVERY = 0.5
LAST_LINES = 15  # of a probe's output, if it failed
_VERSIONS = "cornerstone versions: "
_SAY_VERSIONS = f"import sys, ray; print('{_VERSIONS}%d.%d %s' % (*sys.version_info[:2], ray.__version__), flush=True)"


@dataclass(frozen=True)
class Submission:
    """An experiment, where it goes and what goes with it."""

    arguments: Sequence[str]
    """The experiment file, relative to the current folder (the project's root), and its options. Or a job file
    (`ray_jobs/jobs/X.yaml`), whose command is run, and more options for it."""
    address: str
    """The cluster's dashboard, `http://HOST:8265`; "" for that of RAY_ADDRESS."""
    limit: float = 50.0
    """MiB of packed code above which nothing is uploaded."""
    name: str = ""
    """The job's name; "" lets Ray make one."""
    variables: Sequence[str] = ()
    """Environment variables that travel besides, `NAME` or `NAME=VALUE`."""


def submit(submission: Submission, say: Say) -> None:
    """Check, submit `entrypoint(ARGUMENTS)` as a job, and print its output until it ends (`following.attend`).

    Raises CornerstoneError, before the experiment is submitted, if there is no such file, if the code is too large, if the
    cluster does not answer, has other versions of Ray or Python, or a job of that name, if its nodes cannot write to the home
    or reach the tracking server, or if neither the cluster nor its autoscaler has what the placement needs. Raises it
    afterwards if the job fails.
    """
    environment, arguments = _environment(), submission.arguments
    if not arguments or not Path(arguments[0]).is_file():
        raise CornerstoneError(
            f"There is no file {' '.join(arguments[:1]) or '(none given)'}: name an experiment, experiments/X.py, or a job "
            "file, ray_jobs/jobs/X.yaml."
        )
    command = entrypoint(arguments)
    address = dashboard(submission.address)
    variables, notes = travelling(submission.variables, os.environ)
    say(_measured(environment, submission.limit))
    for note in notes:
        say(note)
    client = connected(address)
    check_ray(client)
    check_name(client, submission.name, address)
    environment["env_vars"] = {**environment.get("env_vars", {}), **variables}
    for note in probed(client, environment, command[2:]).notes:
        say(note)
    environment["env_vars"] = {**_terminal(), **git_state_of(Path.cwd()).variables, **environment["env_vars"]}
    job = _submitted(client, shlex.join(command), environment, submission.name)
    say(f"job {job}; stop it with Ctrl-C twice, or with: ray job stop --address {address} {job}")
    attend(client, job, address, say)


def entrypoint(arguments: Sequence[str]) -> list[str]:
    """The words of the command that a job runs: `python ARGUMENTS`; of a job file its `spec.entrypoint`, and further options.

    Raises CornerstoneError if a job file is no RayJob with an entrypoint.
    """
    import yaml

    file, *options = arguments
    if Path(file).suffix not in (".yaml", ".yml"):
        return ["python", file, *options]
    try:
        loaded = yaml.safe_load(Path(file).read_text())
        return [*shlex.split(loaded["spec"]["entrypoint"]), *options]
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CornerstoneError(
            f"{file} is no job file: expected one RayJob with spec.entrypoint, as ray_jobs/jobs/ablate_loss.yaml. ({error})"
        ) from error


def reattach(job: str, address: str, say: Say) -> None:
    """Follow a job that was submitted before. Raises CornerstoneError if the cluster has no such job, or if it fails."""
    address = dashboard(address)
    client = connected(address)
    if state(client, job) is None:
        known = ", ".join(one.submission_id for one in client.list_jobs() if one.submission_id) or "none"
        raise CornerstoneError(f"There is no job {job!r} at {address}; its jobs: {known}.")
    attend(client, job, address, say)


def dashboard(address: str) -> str:
    """The address that was given, or RAY_ADDRESS. Raises CornerstoneError if it is no dashboard."""
    address = address or os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        raise CornerstoneError(
            f"A job is submitted to a cluster's dashboard, http://HOST:8265; given: {address or 'no address'}. "
            "Name it with --cluster or RAY_ADDRESS."
        )
    return address.rstrip("/")


def connected(address: str) -> JobSubmissionClient:
    """A client of the cluster. Raises CornerstoneError, within seconds, if nothing answers, or if it wants another token."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)  # silences "Uploading package"
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    how = "Is the cluster up (ray status, kubectl get pods), and is the tunnel to its port 8265 open?"
    if not parts.hostname or not listens(parts.hostname, port):
        raise CornerstoneError(f"No cluster answers at {address}: nothing listens there. {how}")
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise CornerstoneError(
            f"The cluster at {address} refuses this client: {first_line(error)}. Give it the cluster's token: "
            f"RAY_AUTH_MODE=token, and the token in ~/.ray/auth_token or RAY_AUTH_TOKEN (on the head: ray get-auth-token)."
        ) from error
    except Exception as error:  # ConnectionError, RuntimeError and others
        raise CornerstoneError(f"No cluster answers at {address}: {first_line(error)}. {how}") from error


def check_ray(client: JobSubmissionClient) -> None:
    """Raise CornerstoneError if the cluster runs another Ray than this environment."""
    import ray

    theirs = getattr(client, "_server_ray_version", None)  # private: what the client itself compares with
    if theirs and _release(theirs) != _release(ray.__version__):
        raise CornerstoneError(
            f"The cluster runs Ray {theirs}, this environment has {ray.__version__}: install ray=={theirs} here, or build the "
            f"cluster's image with {ray.__version__} (constraints.txt has the tested versions)."
        )


def check_name(client: JobSubmissionClient, name: str, address: str) -> None:
    """Raise CornerstoneError if the cluster has a job of that name."""
    if name and (known := state(client, name)) is not None:
        again = shlex.join(["cornerstone", "submit", "--cluster", address, "--follow", name])
        raise CornerstoneError(
            f"The cluster has a job {name!r} already ({known}): give --name another value, or follow that one:\n  {again}"
        )


def state(client: JobSubmissionClient, job: str) -> str | None:
    """The state of a job; None if there is no such job."""
    return next((str(one.status.value) for one in client.list_jobs() if job in (one.submission_id, one.job_id)), None)


def travelling(names: Sequence[str], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment variables that travel with a job, and messages that say which do and which do not.

    The home and the tracking server travel if they are addresses that mean the same everywhere. Raises CornerstoneError if
    one that was asked for is not set.
    """
    found, stay = {}, []
    for name, is_address in ((HOME, lambda value: "://" in value), (TRACKING, is_server)):
        value = environ.get(name, "")
        if value and is_address(value) and redacted(value) == value:
            found[name] = value
        elif value and not any(given.partition("=")[0] == name for given in names):
            stay.append(name)
    for given in names:
        name, mark, value = given.partition("=")
        if not mark and name not in environ:
            raise CornerstoneError(f"--env {name}: this variable is not set here. Set it, or give --env {name}=VALUE.")
        found[name] = value if mark else environ[name]
    notes = [
        f"environment variables that travel: {', '.join(found) or 'none'}; all others are the cluster's own (--env NAME adds "
        f"one, and the cluster's dashboard shows its value)"
    ]
    notes += [
        f"{name} is a place of this machine, or has a password: it stays, and the cluster uses its own (--env {name} sends it)"
        for name in stay
    ]
    return found, notes


def probed(client: JobSubmissionClient, environment: dict[str, Any], options: Sequence[str]) -> Report:
    """Run the probe on the cluster (`runtime.probe`). Raises CornerstoneError with every problem that it found."""
    look = f"python -c {shlex.quote(_SAY_VERSIONS)} && {shlex.join(['python', '-m', 'cornerstone.runtime.probe', *options])}"
    job = _submitted(client, look, environment)
    deadline = time.monotonic() + PROBE_SECONDS
    while not client.get_job_status(job).is_terminal():
        if time.monotonic() > deadline:
            client.stop_job(job)
            raise CornerstoneError(
                f"The cluster took more than {PROBE_SECONDS:.0f} s to run a small job ({job}): see its dashboard and "
                f"`ray status`, and whether its head has memory for one more process."
            )
        time.sleep(POLL_EVERY)
    output = client.get_job_logs(job)
    _check_python(output)
    report = Report.read(output)
    if report is None:
        message = client.get_job_info(job).message or ""
        last = "\n".join((output or message).splitlines()[-LAST_LINES:])
        raise CornerstoneError(
            f"The cluster cannot run this code; nothing was submitted. Its libraries must be installed there "
            f"(constraints.txt). The last lines of job {job}:\n{last}"
        )
    client.delete_job(job)
    if report.problems:
        raise CornerstoneError("\n".join(["The experiment was not submitted:", *report.problems]))
    return report


def _check_python(output: str) -> None:
    import ray

    # At the start of a line: Ray prints the entrypoint too, which contains the text.
    lines = [line.removeprefix(_VERSIONS) for line in output.splitlines() if line.startswith(_VERSIONS)]
    if not lines:
        return  # the output says why
    python, theirs = lines[0].split()
    ours = ".".join(platform.python_version_tuple()[:2])
    if python != ours:
        raise CornerstoneError(
            f"The cluster's `python` is {python}, this one is {ours}: use Python {python} here, or a cluster image with {ours}."
        )
    if _release(theirs) != _release(ray.__version__):
        raise CornerstoneError(
            f"The cluster's `python` has Ray {theirs}, this one {ray.__version__}: see constraints.txt for the tested version."
        )


def _release(version: str) -> str:
    """2.60 of 2.60.1: patch releases work together."""
    return ".".join(version.split(".")[:2])


def _submitted(client: JobSubmissionClient, entrypoint: str, environment: dict[str, Any], name: str = "") -> str:
    """Submit, and wait for a cluster that has just started to take jobs."""
    deadline = time.monotonic() + AGENT_SECONDS
    while True:
        try:
            return str(client.submit_job(entrypoint=entrypoint, runtime_env=environment, submission_id=name or None))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise CornerstoneError(f"The cluster refuses the job: {first_line(error)}.") from error
        time.sleep(1.0)


def _terminal() -> dict[str, str]:
    """The width of this terminal, for a job, which has none of its own."""
    return {"COLUMNS": str(shutil.get_terminal_size().columns)} if sys.stdout.isatty() else {}


def _environment() -> dict[str, Any]:
    import yaml

    if not ENVIRONMENT.is_file():
        raise CornerstoneError(f"There is no {ENVIRONMENT} here ({Path.cwd()}): submit from the project's root.")
    loaded: dict[str, Any] = yaml.safe_load(ENVIRONMENT.read_text())
    return loaded


def _measured(environment: dict[str, Any], limit: float) -> str:
    """What travels, as a message: `913 KiB of code travel to the cluster`.

    Raises CornerstoneError above `limit` MiB in all, and above Ray's own limit, which is one for each package.
    """
    from ray._private.runtime_env.packaging import (  # private: what the submission itself packs with, and its limit
        GCS_STORAGE_MAX_SIZE,
        create_package,
    )

    logging.getLogger("ray._private.runtime_env.packaging").setLevel(
        logging.WARNING
    )  # silences its list of ignore files
    files: list[tuple[int, str]] = []
    largest_package = 0
    with tempfile.TemporaryDirectory() as folder:
        places = [environment["working_dir"], *environment.get("py_modules", ())]
        for number, place in enumerate(places):
            packed = Path(folder) / f"{number}.zip"
            create_package(place, packed, include_gitignore=True, excludes=environment.get("excludes"))
            largest_package = max(largest_package, packed.stat().st_size)
            with zipfile.ZipFile(packed) as package:
                found = [entry for entry in package.infolist() if not entry.is_dir()]
            files += [(entry.compress_size, str(Path(place) / entry.filename)) for entry in found]
    total = sum(size for size, _ in files)
    beyond_ray = largest_package >= GCS_STORAGE_MAX_SIZE
    if total > limit * MEBIBYTE or beyond_ray:
        allowed = f"Ray's own limit of {GCS_STORAGE_MAX_SIZE / MEBIBYTE:g}" if beyond_ray else f"the limit of {limit:g}"
        largest = ", ".join(f"{name} ({_readable(size)})" for size, name in sorted(files)[: -NAMED - 1 : -1])
        raise CornerstoneError(
            f"{_readable(total)} in {len(files):,} files would travel to the cluster with the code, above {allowed} "
            f"MiB; the largest: {largest}. Keep data outside experiments/, ray_jobs/ and platform/ (name them by "
            "URI), or list them in .rayignore" + ("." if beyond_ray else ", or raise --limit.")
        )
    return f"{_readable(total)} of code travel to the cluster ({len(files):,} files)"


def _readable(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB" if size >= MEBIBYTE else f"{size / 1024:.0f} KiB"
