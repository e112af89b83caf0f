"""Part `documents`: a training step of LCL on packed documents against one document a sequence, padded to the budget.

The second is the released code's way: every sequence has one document, is padded to the budget, has a dense causal mask, and
gets logits at every position, padding too. Both ways use the same model, and documents of OpenStax and of the recipes set
mixed; steps of the two alternate. Also the generation loss
in chunks against full logits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.reading import DATA, vocabulary
from benchmarks.report import table
from cornerstone.data.documents import PackingConfig
from cornerstone.data.documents.batch import SequenceBatch
from cornerstone.data.importers import import_pairs
from cornerstone.data.layout import Layout
from cornerstone.data.mixture import write_mixture
from cornerstone.data.records import Pair
from cornerstone.data.stream import Stream
from cornerstone.jobs.packing import write_packing
from cornerstone.objectives import token_losses
from cornerstone.recipes import DocumentData, LclConfig, Optimization, Recipe, preset
from cornerstone.training.build import build_method, build_tower
from cornerstone.training.engine import PlainEngine
from cornerstone.training.prepare import prepare

BUDGET, IMAGE_TOKENS, SEQUENCES, STEPS, WARM_UP_STEPS = 2048, 16, 4, 12, 2
PACKED, ALONE = "packed", "one document a sequence"
TARGETS, CHUNK, VOCABULARY = 4096, 256, 50272
KIB_A_MIB = 1024


def documents(folder: Path, pairs: list[Pair]) -> None:
    """Documents a second of both ways; time and memory of the generation loss."""
    mixed = folder / "mixed"
    import_pairs("mmc4", DATA / "openstax" / "docs_mmc4.jsonl", mixed / "a", images=str(DATA / "openstax" / "images"))
    import_pairs("mmc4", DATA / "recipes" / "docs_mmc4.jsonl", mixed / "b", images=str(DATA / "recipes" / "images"))
    torch.set_num_threads(2)
    for way in (PACKED, ALONE):
        _pack(mixed, way)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {way: pool.apply(_memory_of_a_step, (mixed, way)) for way in (PACKED, ALONE)}
    runs = {way: _run(mixed, way) for way in (PACKED, ALONE)}
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    counted: dict[str, list[int]] = {way: [] for way in runs}
    for step in range(STEPS):
        for way, (engine, stream) in runs.items():
            batch = _batch(stream, step, way)
            start = time.perf_counter()
            engine.step(batch, 1e-4)
            if step >= WARM_UP_STEPS:
                seconds[way].append(time.perf_counter() - start)
                counted[way].append(_documents_of(batch))
    rate = {way: sum(counted[way]) / sum(seconds[way]) for way in runs}
    rows = [
        [
            way,
            f"{statistics.mean(counted[way]):.1f}",
            f"{statistics.median(seconds[way]):.2f}",
            f"{rate[way]:.1f}",
            f"{rate[way] / rate[ALONE]:.2f}",
            f"{memory[way] / KIB_A_MIB:,.0f}",
        ]
        for way in runs
    ]
    heads = ["way", "documents a step", "s a step", "documents a second", "ratio", "peak memory of a step, MiB"]
    table(f"LCL's step, {SEQUENCES} sequences of {BUDGET} tokens, 64 px, {IMAGE_TOKENS} tokens an image", heads, rows)
    _generation_loss()


def _pack(mixed: Path, way: str) -> None:
    config = PackingConfig(token_budget=BUDGET, image_tokens=IMAGE_TOKENS, one_document=way == ALONE)
    packing = mixed / way
    for each in ("a", "b"):
        write_packing(str(mixed / each), str(packing / each), vocabulary(), config)
    write_mixture(str(packing / "both"), [(str(packing / each), "1") for each in ("a", "b")])


def _run(mixed: Path, way: str) -> tuple[PlainEngine, Stream]:
    """The engine and the stream of one way; both ways start with the same weights."""
    method = preset("scenes-lcl").method
    assert isinstance(method, LclConfig)
    recipe = Recipe(
        "documents",
        replace(method, language=replace(method.language, positions=BUDGET)),
        DocumentData(train=str(mixed / way / "both"), image_size=64, crop_scale=(1.0, 1.0)),
        Optimization(steps=STEPS, batch_size=SEQUENCES, learning_rate=1e-4, warmup_steps=0),
    )
    prepared = prepare(recipe)
    engine = PlainEngine(build_method(prepared, build_tower(prepared)), recipe.optimization)
    return engine, Stream.local(Layout(prepared.stream(), 1), 0, 0)


def _batch(stream: Stream, step: int, way: str) -> SequenceBatch:
    """A step's batch; the released code's way computes logits at every position."""
    batch = stream.batch(step)
    assert isinstance(batch, SequenceBatch)
    return replace(batch, target=torch.ones_like(batch.target)) if way == ALONE else batch


def _memory_of_a_step(mixed: Path, way: str) -> int:
    """KiB that two steps add to the peak of a process of their own."""
    torch.set_num_threads(2)
    engine, stream = _run(mixed, way)
    batches = [_batch(stream, step, way) for step in range(2)]
    before = _peak_kib()
    for batch in batches:
        engine.step(batch, 1e-4)
    return _peak_kib() - before


def _documents_of(batch: SequenceBatch) -> int:
    return sum(len(set(row.tolist()) - {-1}) for row in batch.document)  # -1 is padding


def _generation_loss() -> None:
    """With OPT's vocabulary, in chunks and with all logits at once, each in a process of its own."""
    rows = []
    with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for way, chunk in ((f"in chunks of {CHUNK} targets", CHUNK), ("full logits", TARGETS + 1)):
            seconds, memory = pool.apply(_measured_loss, (chunk,))
            rows.append([way, f"{seconds:.2f}", f"{memory / KIB_A_MIB:,.0f}"])
    heads = ["way", "s, forward and backward", "peak memory above the start, MiB"]
    table(f"Generation loss of {TARGETS:,} targets, vocabulary {VOCABULARY:,}, width 256, fp32", heads, rows)


def _measured_loss(chunk: int) -> tuple[float, int]:
    torch.manual_seed(0)
    head = torch.nn.Linear(256, VOCABULARY, bias=False)
    hidden_BTE = torch.randn(1, TARGETS + 1, 256, requires_grad=True)
    ids = torch.randint(VOCABULARY, (1, TARGETS + 1))
    target = torch.ones(1, TARGETS + 1, dtype=torch.bool)
    target[:, 0] = False

    def once() -> None:
        losses = token_losses(hidden_BTE, ids, target, head, chunk=chunk, vocabulary=VOCABULARY)
        losses.sum_B1.sum().backward()

    before = _peak_kib()
    return _median(once), _peak_kib() - before


def _peak_kib() -> int:
    """Peak memory of this process. `getrusage` would count the parent's, from before this program was started."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _median(once: Callable[[], None]) -> float:
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])
