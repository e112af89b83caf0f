"""`cornerstone submit`: an experiment as a job on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from cornerstone.commands.terminal import say


@dataclass(frozen=True)
class SubmitCommand:
    """Submit an experiment to a cluster and follow its output: cornerstone submit experiments/X.py -- --preset lotlip-3m

    Says how much code travels with it. What follows `--` are the experiment's options. A job file, ray_jobs/jobs/X.yaml, names
    an experiment with its options; those after `--` are added.
    """

    experiment: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """The experiment or job file, relative to the project's root, which must be the current folder."""
    address: str = ""
    """The cluster's dashboard, http://HOST:8265; without it, that of RAY_ADDRESS."""
    limit: float = 50.0
    """MiB of code above which nothing is uploaded."""
    options: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="-- OPTIONS")] = ()
    """Options of the experiment."""

    def run(self) -> None:
        """Submit, and print the output until the job ends."""
        from cornerstone.runtime.submission import submit

        submit([self.experiment, *self.options], self.address, self.limit, say)
