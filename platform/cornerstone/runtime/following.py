"""Following a job of a cluster from another machine: its output, lost connections, Ctrl-C, and how to come back."""

from __future__ import annotations

import asyncio
import logging
import re
import shlex
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cornerstone.errors import CornerstoneError, first_line

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

Say = Callable[[str], None]
RECONNECT_EVERY = 2.0  # seconds between attempts to reach a cluster again
PATIENCE = 600.0  # seconds without an answer after which the connection counts as lost
DECIDE = 10.0  # seconds in which a second Ctrl-C stops the job
STOPPING = 30.0  # seconds that a job is given to stop; Ray kills it after three
_NOISE = "Set ray log level from environment variable"
"""Ray prints this line wherever RAY_BACKEND_LOG_LEVEL is set, as `make demo` does."""
_CONTINUE = re.compile(r"--continue[ =](\S+)")


def attend(client: JobSubmissionClient, job: str, address: str, say: Say) -> None:
    """Follow a job. The first Ctrl-C asks, and leaves the job running; a second one within seconds stops it.

    Raises CornerstoneError if the job did not succeed, SystemExit with status 130 after Ctrl-C.
    """
    again = shlex.join(["cornerstone", "submit", "--cluster", address, "--follow", job])
    try:
        follow(client, job, say, again)
    except KeyboardInterrupt:
        say(f"\nJob {job} goes on; follow it again with:\n  {again}\nCtrl-C again within {DECIDE:.0f} s stops it.")
        try:
            time.sleep(DECIDE)
        except KeyboardInterrupt:
            _stop(client, job, address, say)
        raise SystemExit(130) from None


def follow(client: JobSubmissionClient, job: str, say: Say = print, again: str = "") -> None:
    """Print a job's output, and nothing else, until it ends; where the connection is lost, go on when it is back.

    Raises CornerstoneError if the job did not succeed, or if the cluster has not answered for minutes (`again` is the command
    that follows the job again).
    """
    import aiohttp

    logging.getLogger(type(client).__module__).setLevel(logging.WARNING)  # silences "connection closed"
    printed, answered, lost = 0, time.monotonic(), False

    async def tail() -> None:
        """Print what is new; each connection sends the output from its beginning."""
        nonlocal printed, answered, lost
        received = 0
        async for lines in client.tail_job_logs(job):
            new = lines[max(printed - received, 0) :]
            received += len(lines)
            printed, answered, lost = max(printed, received), time.monotonic(), False
            print("".join(line for line in new.splitlines(keepends=True) if _NOISE not in line), end="", flush=True)

    while True:
        try:
            asyncio.run(tail())
            information = client.get_job_info(job)
            answered = time.monotonic()
            if information.status.is_terminal():
                break
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            if time.monotonic() - answered > PATIENCE:
                raise CornerstoneError(
                    f"The cluster has not answered for {PATIENCE / 60:.0f} minutes ({first_line(error)}). Job {job} may go on"
                    + (f"; follow it again with:\n  {again}" if again else ".")
                ) from error
            if not lost:
                say("the connection to the cluster is lost; the job goes on, and its output when the cluster answers")
            lost = True
        time.sleep(RECONNECT_EVERY)
    if information.status != "SUCCEEDED":
        raise CornerstoneError(f"job {job}: {information.status}. {information.message or ''}")


def _stop(client: JobSubmissionClient, job: str, address: str, say: Say) -> None:
    """Stop a job, and say how its sweep continues."""
    say(f"stopping job {job} ...")
    client.stop_job(job)
    deadline = time.monotonic() + STOPPING
    while not client.get_job_status(job).is_terminal() and time.monotonic() < deadline:
        time.sleep(0.2)
    state = client.get_job_status(job)
    if not state.is_terminal():
        raise CornerstoneError(f"Job {job} is still {state}: stop it with ray job stop --address {address} {job}")
    say(f"{state}. {how_to_continue(client, job, address)}")


def how_to_continue(client: JobSubmissionClient, job: str, address: str) -> str:
    """The command that continues a job's sweep; one that starts again if the job had none yet."""
    program, *options = shlex.split(client.get_job_info(job).entrypoint)[1:]
    sweeps = _CONTINUE.findall(client.get_job_logs(job))
    if sweeps:
        kept = _CONTINUE.sub("", shlex.join(options))
        options = [*shlex.split(kept), "--continue", sweeps[-1]]
    typed = shlex.join(["cornerstone", "submit", program, "--cluster", address, *(["--", *options] if options else [])])
    return f"Finished trials are kept; continue with:\n  {typed}" if sweeps else f"Start again with:\n  {typed}"
