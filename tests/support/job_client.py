"""A stand-in for Ray's job client: jobs that end as they are told to, and connections that break."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import ray
from ray.job_submission import JobStatus

from cornerstone.runtime.probe import Report
from cornerstone.runtime.submission import _VERSIONS


class Jobs:
    """The jobs of a cluster.

    `report` is what the probe finds, `python` and `ray` the versions there; `chunks` is the output of an experiment, in which
    an exception breaks the connection, once.
    """

    def __init__(self) -> None:
        self.report: Report | None = Report()
        self.python = "{}.{}".format(*sys.version_info)
        self.ray = self._server_ray_version = ray.__version__
        self.chunks: list[str | Exception | Callable[[], None]] = ["step 1\n", "step 2\n"]
        self.ends = JobStatus.SUCCEEDED
        self.busy = 0  # submissions that are refused by a cluster that has just started
        self.jobs: dict[str, SimpleNamespace] = {}
        self.deleted: list[str] = []

    @property
    def experiments(self) -> list[SimpleNamespace]:
        return [job for job in self.jobs.values() if "probe" not in job.entrypoint]

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any], submission_id: str | None) -> str:
        if self.busy:
            self.busy -= 1
            raise RuntimeError("No available agent to submit job, please try again later.")
        name, logs = submission_id or f"raysubmit_{len(self.jobs)}", ""
        status = JobStatus.RUNNING
        if "probe" in entrypoint:
            status = JobStatus.SUCCEEDED if self.report else JobStatus.FAILED
            found = self.report.line() if self.report else "ModuleNotFoundError: No module named 'pyarrow'"
            logs = f"Running entrypoint for job {name}: {entrypoint}\n{_VERSIONS}{self.python} {self.ray}\n{found}\n"
        self.jobs[name] = SimpleNamespace(
            submission_id=name,
            job_id=None,
            entrypoint=entrypoint,
            env=runtime_env,
            status=status,
            logs=logs,
            message="",
        )
        return name

    def list_jobs(self) -> list[SimpleNamespace]:
        return list(self.jobs.values())

    def get_job_status(self, job: str) -> JobStatus:
        return self.jobs[job].status

    def get_job_info(self, job: str) -> SimpleNamespace:
        return self.jobs[job]

    def get_job_logs(self, job: str) -> str:
        return self.jobs[job].logs

    def delete_job(self, job: str) -> bool:
        self.deleted.append(job)
        return True

    def stop_job(self, job: str) -> bool:
        self.jobs[job].status = JobStatus.STOPPED
        return True

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        """From the beginning, as Ray does it."""
        for place, chunk in enumerate(self.chunks):
            if isinstance(chunk, str):
                yield chunk
                continue
            self.chunks[place] = ""
            if isinstance(chunk, Exception):
                raise chunk
            chunk()
        self.jobs[job].logs = "".join(chunk for chunk in self.chunks if isinstance(chunk, str))
        self.jobs[job].status = self.ends
