"""Print the output of a Ray job, and nothing else, until it ends: `python ray_jobs/follow.py ADDRESS JOB`.

Exits with 0 if the job succeeded and with 1 if it failed or was stopped.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from ray.job_submission import JobStatus, JobSubmissionClient


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Print the output as it arrives."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def main() -> None:
    """Follow the job that the command line names."""
    address, job = sys.argv[1:3]
    client = JobSubmissionClient(address)
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)  # silences "connection closed"
    asyncio.run(follow(client, job))
    information = client.get_job_info(job)
    if information.status != JobStatus.SUCCEEDED:
        print(f"job {job}: {information.status}. {information.message or ''}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
