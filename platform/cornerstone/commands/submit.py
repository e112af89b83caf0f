"""`cornerstone submit`: an experiment as a job on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from cornerstone.commands.terminal import say
from cornerstone.errors import CornerstoneError


@dataclass(frozen=True)
class SubmitCommand:
    """Submit an experiment to a cluster and follow it: cornerstone submit experiments/X.py --cluster http://HOST:8265 -- ..

    Before that it checks the versions of Ray and Python, the size of the code that travels, and, by a small job on the
    cluster, that the nodes can write to CORNERSTONE_HOME, reach MLFLOW_TRACKING_URI, and have what the placement needs.
    Ctrl-C leaves the job running, Ctrl-C twice stops it. What follows `--` are the experiment's options. A job file,
    ray_jobs/jobs/X.yaml, names an experiment with its options; those after `--` are added.
    """

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")] = ""
    """The experiment or job file, relative to the project's root, which must be the current folder."""
    cluster: Annotated[str, tyro.conf.arg(aliases=["--address"], metavar="ADDRESS")] = ""
    """The cluster's dashboard, http://HOST:8265; without it, that of RAY_ADDRESS."""
    name: str = ""
    """The job's name on the cluster."""
    follow: Annotated[str, tyro.conf.arg(metavar="JOB")] = ""
    """Submit nothing, and follow a job that was submitted before."""
    env: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME[=VALUE] ..")] = ()
    """Environment variables that travel. CORNERSTONE_HOME and MLFLOW_TRACKING_URI do if they are addresses; no other does."""
    limit: float = 50.0
    """MiB of code above which nothing is uploaded."""
    options: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="-- OPTIONS")] = ()
    """Options of the experiment."""

    def run(self) -> None:
        """Submit, and print the output until the job ends."""
        from cornerstone.runtime.submission import Submission, reattach, submit

        if self.follow and self.experiment:
            raise CornerstoneError(f"--follow {self.follow} submits nothing: leave out {self.experiment}, or --follow.")
        if self.follow:
            return reattach(self.follow, self.cluster, say)
        arguments = [self.experiment, *self.options] if self.experiment else []
        return submit(Submission(arguments, self.cluster, self.limit, self.name, self.env), say)
