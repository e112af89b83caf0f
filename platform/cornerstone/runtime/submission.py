"""Submitting a job to a cluster: what of this folder travels there, and the job's output."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cornerstone.errors import CornerstoneError
from cornerstone.runtime.cluster import Say

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ENVIRONMENT = Path("ray_jobs/runtime_env.yaml")
MEBIBYTE = 1 << 20
_NOISE = "Set ray log level from environment variable"
"""Ray prints this line wherever RAY_BACKEND_LOG_LEVEL is set, as `make demo` does."""
NAMED = 5  # files in the message about a package that is too large


def submit(arguments: Sequence[str], address: str, limit: float, say: Say) -> None:
    """Run `python ARGUMENTS` as a job on the cluster of a dashboard's address, and print its output until it ends.

    Args:
        arguments: An experiment file, relative to the current folder (the project's root), and its options. Or a job file
            (`ray_jobs/jobs/X.yaml`), whose command is run, and more options for it.
        address: `http://HOST:8265`; "" for that of RAY_ADDRESS.
        limit: MiB of packed code above which nothing is uploaded.

    Raises CornerstoneError if the code is larger than that, if the cluster does not answer, or if the job fails.
    """
    environment = _environment()
    if not arguments or not Path(arguments[0]).is_file():
        raise CornerstoneError(
            f"There is no file {' '.join(arguments[:1]) or '(none given)'}: name an experiment, experiments/X.py, or a job "
            "file, ray_jobs/jobs/X.yaml."
        )
    command = shlex.join(entrypoint(arguments))
    address = address or os.environ.get("RAY_ADDRESS", "")
    if not address.startswith(("http://", "https://")):
        raise CornerstoneError(
            f"A job is submitted to a cluster's dashboard, http://HOST:8265; given: {address or 'no address'}. "
            "Name it with --address or RAY_ADDRESS."
        )
    say(_measured(environment, limit))
    client = _client(address)
    job = client.submit_job(entrypoint=command, runtime_env=environment)
    say(f"job {job} (stop it with: ray job stop --address {address} {job})")
    follow(client, job)


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


def follow(client: JobSubmissionClient, job: str) -> None:
    """Print a job's output, and nothing else, until it ends. Raises CornerstoneError if it did not succeed."""
    from ray.job_submission import JobStatus

    async def printed() -> None:
        async for lines in client.tail_job_logs(job):
            print("".join(line for line in lines.splitlines(keepends=True) if _NOISE not in line), end="", flush=True)

    logging.getLogger(type(client).__module__).setLevel(logging.WARNING)  # silences "connection closed"
    asyncio.run(printed())
    information = client.get_job_info(job)
    if information.status != JobStatus.SUCCEEDED:
        raise CornerstoneError(f"job {job}: {information.status}. {information.message or ''}")


def _environment() -> dict[str, Any]:
    import yaml

    if not ENVIRONMENT.is_file():
        raise CornerstoneError(f"There is no {ENVIRONMENT} here ({Path.cwd()}): submit from the project's root.")
    loaded: dict[str, Any] = yaml.safe_load(ENVIRONMENT.read_text())
    return loaded


def _measured(environment: dict[str, Any], limit: float) -> str:
    """What travels, as a message: `913 KiB of code travel to the cluster`. Raises CornerstoneError above `limit` MiB."""
    from ray._private.runtime_env.packaging import create_package  # private: what the submission itself packs with

    logging.getLogger("ray._private.runtime_env.packaging").setLevel(
        logging.WARNING
    )  # silences its list of ignore files
    files: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        places = [environment["working_dir"], *environment.get("py_modules", ())]
        for number, place in enumerate(places):
            packed = Path(folder) / f"{number}.zip"
            create_package(place, packed, include_gitignore=True, excludes=environment.get("excludes"))
            with zipfile.ZipFile(packed) as package:
                found = [entry for entry in package.infolist() if not entry.is_dir()]
            files += [(entry.compress_size, str(Path(place) / entry.filename)) for entry in found]
    total = sum(size for size, _ in files)
    if total > limit * MEBIBYTE:
        largest = ", ".join(f"{name} ({_readable(size)})" for size, name in sorted(files)[: -NAMED - 1 : -1])
        raise CornerstoneError(
            f"{_readable(total)} in {len(files):,} files would travel to the cluster with the code, above the limit of "
            f"{limit:g} MiB; the largest: {largest}. Keep data outside experiments/, ray_jobs/ and platform/ (name them by "
            "URI), list them in .rayignore, or raise --limit."
        )
    return f"{_readable(total)} of code travel to the cluster ({len(files):,} files)"


def _readable(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB" if size >= MEBIBYTE else f"{size / 1024:.0f} KiB"


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except Exception as error:  # ConnectionError, RuntimeError and others
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CornerstoneError(f"No cluster answers at {address}: {why}") from error
