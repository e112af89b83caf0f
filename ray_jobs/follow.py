"""Print a Ray job's output until it ends, and nothing else: `python ray_jobs/follow.py ADDRESS JOB`.

Exits with 0 where the job succeeded, with 1 where it failed or was stopped.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from ray.job_submission import JobStatus, JobSubmissionClient


async def follow(client: JobSubmissionClient, job: str) -> None:
    """Pass the job's output on as it comes."""
    async for lines in client.tail_job_logs(job):
        print(lines, end="", flush=True)


def main() -> None:
    """Follow the job that the command line names."""
    address, job = sys.argv[1:3]
    client = JobSubmissionClient(address)
    logging.getLogger(JobSubmissionClient.__module__).setLevel(logging.WARNING)  # that the connection closed is no news
    asyncio.run(follow(client, job))
    information = client.get_job_info(job)
    if information.status != JobStatus.SUCCEEDED:
        print(f"job {job}: {information.status}. {information.message or ''}")
        raise SystemExit(1)


if __name__ == "__main__":
    main()
