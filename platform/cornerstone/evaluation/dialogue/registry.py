"""The benchmarks by their names."""

from __future__ import annotations

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.evaluation.dialogue.benchmark import Benchmark
from cornerstone.evaluation.dialogue.choices import mmbench, scienceqa, score_circular, score_letters, seed_bench
from cornerstone.evaluation.dialogue.conversations import conversations
from cornerstone.evaluation.dialogue.open_answers import gqa, score_exact, score_vizwiz, score_vqa, vizwiz, vqav2
from cornerstone.evaluation.dialogue.yes_no import mme, pope, score_mme, score_pope

_ACCURACY = ("accuracy",)
_ALL = (
    Benchmark("vqav2", "VQAv2", _ACCURACY, vqav2, score_vqa, files=2),
    Benchmark("gqa", "GQA", _ACCURACY, gqa, score_exact),
    Benchmark("vizwiz", "VizWiz", (*_ACCURACY, "called_unanswerable"), vizwiz, score_vizwiz),
    Benchmark("scienceqa", "ScienceQA, with image", _ACCURACY, scienceqa, score_letters),
    Benchmark("pope", "POPE", ("f1", "accuracy", "precision", "recall", "yes_ratio"), pope, score_pope),
    Benchmark("mme", "MME", ("perception", "cognition"), mme, score_mme, unit=""),
    Benchmark("mmbench", "MMBench", (*_ACCURACY, "accuracy_single"), mmbench, score_circular),
    Benchmark("conversations", "conversations", _ACCURACY, conversations, score_exact),
    Benchmark("seed", "SEED-Bench, images", _ACCURACY, seed_bench, score_letters),
)
BENCHMARKS: dict[str, Benchmark] = {one.name: one for one in _ALL}


def benchmark(name: str) -> Benchmark:
    """CornerstoneError for an unknown name."""
    if name not in BENCHMARKS:
        raise CornerstoneError(f"Unknown benchmark {name!r}{did_you_mean(name, BENCHMARKS)}")
    return BENCHMARKS[name]
