"""What is said of a run that stopped."""

from __future__ import annotations

import json
from types import SimpleNamespace

from cornerstone.training.job import Identity, Job
from cornerstone.training.launch import SNAPSHOT, last_good_checkpoint


def test_the_last_good_checkpoint_is_named(tmp_path):
    job = Job(SimpleNamespace(), SimpleNamespace(), Identity(run="one", home=str(tmp_path)))
    assert last_good_checkpoint(job) == "No checkpoint had been written before."
    latest = {"latest_checkpoint_result": {"checkpoint_dir_name": "step-000001200"}}
    folder = job.identity.checkpoints.join("one")
    folder.join("step-000002000").make()  # a partial upload, which the snapshot does not name
    folder.join(SNAPSHOT).write_text(json.dumps(latest))
    said = last_good_checkpoint(job)
    assert said == f"The last good checkpoint is from after step 1,200: {tmp_path}/checkpoints/one/step-000001200"
