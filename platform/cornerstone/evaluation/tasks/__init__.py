"""The evaluation tasks by name, one module each. A new task is a module here and an entry in `TASKS`."""

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.evaluation.tasks.attention import Attention
from cornerstone.evaluation.tasks.caption import Captioning
from cornerstone.evaluation.tasks.classification import Classification
from cornerstone.evaluation.tasks.classifier import Classified
from cornerstone.evaluation.tasks.dialogue import DIALOGUES
from cornerstone.evaluation.tasks.interleaved import Interleaved
from cornerstone.evaluation.tasks.lookalike import Lookalike
from cornerstone.evaluation.tasks.probe import Probe
from cornerstone.evaluation.tasks.retrieval import Retrieval
from cornerstone.evaluation.tasks.sentence_swap import SentenceSwap
from cornerstone.evaluation.tasks.task import Contents, EvaluationInputs, EvaluationSet, Metric, Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(Retrieval(), Classification(), Lookalike(), SentenceSwap(), Attention()),
        *(Interleaved(), Probe(), Classified(), Captioning()),
        *DIALOGUES,
    )
}
"""In the order in which a folder's sets are listed."""


def task_named(name: str, where: str = "") -> Task:
    """The task of that name; CornerstoneError, beginning with `where`, if there is none."""
    if name not in TASKS:
        raise CornerstoneError(f"{where}Unknown evaluation task {name!r}{did_you_mean(name, TASKS)}")
    return TASKS[name]


__all__ = ["TASKS", "Contents", "EvaluationInputs", "EvaluationSet", "Metric", "Task", "task_named"]
