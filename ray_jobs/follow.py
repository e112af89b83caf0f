"""Print the output of a Ray job, and nothing else, until it ends: `python ray_jobs/follow.py ADDRESS JOB`.

Exits with 0 if the job succeeded and with 1 if it failed or was stopped.
"""

from __future__ import annotations

import sys

from ray.job_submission import JobSubmissionClient

from cornerstone.errors import CornerstoneError
from cornerstone.runtime.following import follow


def main() -> None:
    """Follow the job that the command line names."""
    address, job = sys.argv[1:3]
    try:
        follow(JobSubmissionClient(address), job)
    except CornerstoneError as error:
        print(error)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
