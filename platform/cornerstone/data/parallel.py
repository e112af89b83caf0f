"""One Ray task per item, results in the order of the items: for commands that read all shards of a data set."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    import ray.data

Item = TypeVar("Item")
Result = TypeVar("Result")
OnProgress = Callable[[int, int], None]
"""Called with the number of finished tasks and of all tasks."""
Mapped = Callable[..., Iterator[Any]]
"""`map_here`, or `map_tasks`."""


def map_tasks(
    work: Callable[[Item], Result], items: Sequence[Item], *, failed: str, progress: OnProgress | None = None
) -> Iterator[Result]:
    """The results of `work` on every item, each in its own task. Needs Ray to be started.

    Raises CornerstoneError with the text `failed` and the reason if a task dies or raises.
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


def map_here(
    work: Callable[[Item], Result], items: Sequence[Item], *, failed: str, progress: OnProgress | None = None
) -> Iterator[Result]:
    """The same in this process, one item after another: for data sets of seconds, before Ray is started."""
    for done, item in enumerate(items, 1):
        try:
            yield work(item)
        except CornerstoneError as error:
            raise CornerstoneError(f"{failed} {error}") from error
        if progress is not None:
            progress(done, len(items))


def in_order(dataset: ray.data.Dataset, failed: str) -> Iterator[dict[str, Any]]:
    """The rows of a Ray Data pipeline as they become available, in order, without Ray's own progress bars.

    Raises CornerstoneError with the text `failed` and the reason if its work raises.
    """
    context = dataset.context
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    try:
        yield from dataset.iter_rows()
    except Exception as error:  # whatever a task raises: Ray gives the original, or one of its own
        # Ray's own may inherit from the original's class, but its text is the traceback of the task.
        cause = getattr(error, "cause", None) or error
        if isinstance(cause, CornerstoneError):
            raise CornerstoneError(f"{failed} {cause}") from error
        why = f"{type(cause).__name__}: {str(cause).partition(chr(10))[0]}"  # Ray's advice on retries is left out
        raise CornerstoneError(f"{failed} {why}") from error
