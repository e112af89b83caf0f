"""Run one Ray task per item and yield the results in order: for commands that go through the shards of a data set."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    import ray.data

Item = TypeVar("Item")
Result = TypeVar("Result")
Progress = Callable[[int, int], None]
"""Called with the number of finished tasks and the number of all tasks."""


def map_tasks(
    work: Callable[[Item], Result], items: Sequence[Item], *, failed: str, progress: Progress | None = None
) -> Iterator[Result]:
    """Yield `work(item)` of every item in order, each computed in its own Ray task. Ray must be started.

    Raises CornerstoneError if a task dies or raises; the message is `failed` and the reason.
    """
    import ray.data

    if not items:
        return
    rows = [{"item": pickle.dumps(item)} for item in items]

    def task(row: dict[str, Any]) -> dict[str, bytes]:
        return {"result": pickle.dumps(work(pickle.loads(row["item"])))}

    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map(task)
    for done, row in enumerate(in_order(dataset, failed), 1):
        yield pickle.loads(row["result"])
        if progress is not None:
            progress(done, len(rows))


def in_order(dataset: ray.data.Dataset, failed: str) -> Iterator[dict[str, Any]]:
    """The rows of a Ray Data pipeline as they are finished, in order and without Ray's progress bars.

    Raises CornerstoneError if a task dies or raises; the message is `failed` and the reason.
    """
    from ray.exceptions import RayError

    context = dataset.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    try:
        yield from dataset.iter_rows()
    except RayError as error:
        cause = getattr(error, "cause", error)
        if isinstance(cause, CornerstoneError):
            raise CornerstoneError(f"{failed} {cause}") from error
        why = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"  # after the first line Ray adds advice on retries
        raise CornerstoneError(f"{failed} {why}") from error
