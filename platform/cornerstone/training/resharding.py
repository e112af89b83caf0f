"""Reshards a ZeRO checkpoint for another number of workers, through DeepSpeed's universal checkpoint format."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from cornerstone.errors import CornerstoneError

TAG = "deepspeed"
"""The folder inside a checkpoint that DeepSpeed writes."""
UNIVERSAL = "universal"


@contextmanager
def resharded(folder: str) -> Iterator[str]:
    """The checkpoint in the universal format, which any number of workers can load, for the length of the block.

    The first worker of each machine converts it on that machine's disk; all workers enter and leave together. Raises
    CornerstoneError on all of them if it cannot be converted.
    """
    name = f"cornerstone-universal-{hashlib.sha256(folder.encode()).hexdigest()[:16]}"
    made, first_here = os.path.join(tempfile.gettempdir(), name), os.environ.get("LOCAL_RANK", "0") == "0"
    try:
        if problem := _first_of_all(_make(folder, made) if first_here else ""):
            raise CornerstoneError(
                f"The checkpoint {folder} cannot be resharded for another number of workers: {problem}"
            )
        yield made
        _first_of_all("")  # a barrier: nobody deletes it while another worker reads it
    finally:
        if first_here:
            shutil.rmtree(made, ignore_errors=True)


def _make(folder: str, made: str) -> str:
    """Convert the checkpoint; returns why it failed, or "" if it did not."""
    shutil.rmtree(made, ignore_errors=True)
    places = ["--input_folder", os.path.join(folder, TAG), "--output_folder", os.path.join(made, UNIVERSAL)]
    # One process, since forking beside this worker's threads is unsafe. Checkpoints of ZeRO 1 and 2 lack a state of stage 3.
    how = ["--num_extract_workers", "1", "--num_merge_workers", "1", "--inject_missing_state"]
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *places, *how]
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1] if done.returncode else ""


def _first_of_all(text: str) -> str:
    """The first text that is not empty over all workers: an all-gather, so a barrier too."""
    if not dist.is_initialized():
        return text
    texts: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(texts, text)
    return next(filter(None, texts), "")
