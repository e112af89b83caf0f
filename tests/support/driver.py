"""The driver of one run, as a process that a test may kill: `driver.py JOB WORKERS OUTCOME` starts a Ray of its own."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import asdict, replace
from pathlib import Path

import ray

from cornerstone.training.launch import launch

if __name__ == "__main__":
    job_file, workers, outcome_file = sys.argv[1:]
    job = pickle.loads(Path(job_file).read_bytes())
    ray.init(num_cpus=2, address="local", dashboard_host="127.0.0.1", log_to_driver=False)
    outcome = launch(replace(job, placement=replace(job.placement, workers=int(workers))), print)
    Path(outcome_file).write_text(json.dumps(asdict(outcome)))
