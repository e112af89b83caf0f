"""Transfer to dialogue, as LLaVA-1.5: a projector, then with it a language model, learns to answer questions about images.

LCL's Table 4 (appendix A.2, Table 8). The paper does not say which layer's patches it reads: LLaVA-1.5's are the second-last
one's, before the last norm. Everything runs in this process, on one device: a language model of 7 billion parameters with its
gradients and optimizer takes about 112 GB in fp32.

S seeds, Q questions.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from cornerstone.data.batch import Batch
from cornerstone.data.conversations.chat import Chat
from cornerstone.data.conversations.source import READERS, ConversationSource
from cornerstone.data.images import Transform
from cornerstone.data.pairs.image_input import DecodedImages, ImageInput
from cornerstone.data.plan import Plan
from cornerstone.data.shards import DataSet, Reader
from cornerstone.data.source import Ints
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.dialogue import Scored
from cornerstone.models.dialogue_transfer import DialogueTransfer
from cornerstone.models.image_tower import without_last_layer
from cornerstone.models.method import Inputs
from cornerstone.recipes.dialogue_transfer import DialogueTransferConfig
from cornerstone.transfer.answering import Judged, answered, judged, write_answers
from cornerstone.transfer.fitting import Fitting, best_rate, held_out, trained, with_rate
from cornerstone.transfer.images import ROWS_AT_ONCE
from cornerstone.transfer.language import Language, open_language
from cornerstone.transfer.options import Options, Paper
from cornerstone.transfer.patches import held_patches, pixels
from cornerstone.transfer.result import Result, Row, few_seeds
from cornerstone.transfer.subjects import Subject, compared, subjects
from cornerstone.transfer.towers import patch_count

ALIGNMENT = Paper(1_091, 512, warmup=30, rows=558_128, learning_rates=(1e-3,))
"""The first stage: LLaVA's 558,000 pairs, once."""
INSTRUCTIONS = Paper(5_198, 128, warmup=156, rows=665_298, learning_rates=(2e-5,))
"""The second stage: LLaVA's 665,000 conversations, once."""
NEW = replace(INSTRUCTIONS, learning_rates=(1e-3,))
"""Of a language model with random weights, which 2e-5 would leave as they are."""
TOWER_LR_FACTOR = 0.1
"""2e-6 of a tower beside 2e-5."""
TOKEN_LIMIT = 2_048
"""Tokens of a conversation with its image (LLaVA-1.5)."""


@dataclass(frozen=True)
class Stage:
    """The data of a stage, and how it is trained."""

    source: ConversationSource
    usable: Ints
    """Rows that can be learnt from; in the first stage those with an image."""
    fitting: Fitting

    def reader(self, seed: int, bad: dict[int, str]) -> Callable[[int, Ints, Ints], Batch]:
        """Batches of a seed; rows that cannot be used are added to `bad` with their reasons."""
        source = replace(self.source, seed=seed)
        opened = source.open()

        def read(step: int, planned: Ints, epochs: Ints) -> Batch:
            batch = source.batch(step, opened.take(planned, epochs))
            bad.update((one.row, one.reason) for one in batch.bad)
            return batch

        return read


def converse(model: str, options: Options) -> Result:
    """Every row of the table for the tower that `model` names."""
    start = time.perf_counter()
    measured = [_cut(subject, options) for subject in subjects(model, options, TOWER_LR_FACTOR)]
    patches, limit = patch_count(measured[0].tower), options.limit(TOKEN_LIMIT)
    if limit <= patches:
        raise CornerstoneError(f"A token limit of {limit} has no room beside {patches} patches: raise --token-limit.")
    name, sets = judged(options)
    train = _conversations(options.train)
    language = open_language(options, train.location, limit)
    chat = Chat(language.tokenizer, language.first, language.last, limit - patches)
    rows, notes = list[Row](), [*few_seeds(options.seeds), *language.notes]
    if not options.dialogue.alignment:
        notes.append(
            "First stage: on the first answers of --train, since --alignment names no pairs (LLaVA: 558,000 captions)."
        )
    for subject in measured:
        options.say(f"{subject.name}, {subject.mode}: {len(train):,} conversations")
        found, said = _measured(subject, train, language, chat, sets, options)
        rows += found
        notes += [note for note in said if note not in notes]
    notes += compared(rows, rows[0].name)
    return Result(name, tuple(rows), tuple(notes), time.perf_counter() - start)


def _cut(subject: Subject, options: Options) -> Subject:
    if options.dialogue.patches == "last":
        return subject
    return replace(subject, tower=without_last_layer(subject.tower))


def _conversations(folder: str) -> DataSet:
    data = DataSet.open(folder)
    if data.manifest.kind not in READERS:
        raise CornerstoneError(
            f"{folder} holds {data.manifest.kind}, but conversations (cornerstone data import llava) or pairs are needed."
        )
    return data


def _measured(
    subject: Subject, train: DataSet, language: Language, chat: Chat, sets: Sequence[Judged], options: Options
) -> tuple[list[Row], list[str]]:
    start = time.perf_counter()
    first, second = _stages(subject, train, language, chat, options)
    bad: dict[int, str] = {}

    def fitted(rows: Ints, rate: float, seed: int) -> DialogueTransfer:
        return _fit(subject, language, first, replace(second, usable=rows), rate, seed, bad, options)

    held = held_out(second.usable, options.held_share)

    def reached(rate: float) -> float:
        return -_loss(fitted(np.setdiff1d(second.usable, held), rate, 0), second, held, options)

    what = f"minus the loss of {len(held):,} held-out conversations"
    rate = best_rate(options.rates(INSTRUCTIONS if language.pretrained else NEW), reached, options.say, what)
    scored: list[list[Scored]] = []
    notes: list[str] = []
    for seed in range(options.seeds):
        module, form = fitted(second.usable, rate, seed), chat.open()
        of_seed = []
        for one in sets:
            answers, unread = answered(module, one, form, subject.tower.size, options)
            notes += [note for note in one.unread_notes(unread) if note not in notes]
            of_seed.append(one.benchmark.score(one.questions, answers))
            if options.dialogue.written and not seed and not subject.prefix:
                write_answers(options.dialogue.written, one, answers)
        scored.append(of_seed)
        shown = ", ".join(
            f"{one.benchmark.title} {next(iter(found.metrics.values())):.1f}"
            for one, found in zip(sets, of_seed, strict=True)
        )
        options.say(f"  seed {seed}: {shown}, {time.perf_counter() - start:.1f} s")
    if bad:
        row, reason = next(iter(bad.items()))
        notes.append(f"{len(bad):,} of {len(train):,} training rows could not be used (row {row}: {reason}).")
    seconds, rows = time.perf_counter() - start, list[Row]()
    for number, one in enumerate(sets):
        rows += _rows(subject, one, [of_seed[number] for of_seed in scored], rate, seconds)
    return rows, notes


def _stages(subject: Subject, train: DataSet, language: Language, chat: Chat, options: Options) -> tuple[Stage, Stage]:
    asked = options.dialogue
    alignment = _conversations(asked.alignment) if asked.alignment else train
    plain = replace(chat, style="plain")
    images = _images(subject, train, chat, options)
    others = _images(subject, alignment, plain, options) if asked.alignment else images
    rates = (asked.alignment_learning_rate,) if asked.alignment_learning_rate else ALIGNMENT.learning_rates
    first = replace(options, steps=asked.alignment_steps, batch_size=asked.alignment_batch_size, learning_rates=rates)
    shown = np.flatnonzero(_shown(alignment))
    if not len(shown):
        raise CornerstoneError(f"No row of {alignment.location} has an image to align: name other pairs, --alignment.")
    if without := len(train) - int(_shown(train).sum()):
        options.say(f"  {without:,} of {len(train):,} conversations have no image; they are learnt too")
    return (
        _stage(ConversationSource.of(alignment, others, plain), shown, first, ALIGNMENT),
        _stage(ConversationSource.of(train, images, chat), np.arange(len(train)), options, INSTRUCTIONS),
    )


def _stage(source: ConversationSource, usable: Ints, options: Options, paper: Paper) -> Stage:
    """A stage on some rows. CornerstoneError if none of the first ones can be used: it is another kind of documents then."""
    some = usable[:ROWS_AT_ONCE]
    table = source.open().take(some, np.zeros_like(some))
    if not any(table["valid"].to_pylist()):
        reason = table["bad"][0].as_py()[0]["reason"]
        raise CornerstoneError(f"None of the first {len(some)} rows of {source.folder} can be learnt: {reason}.")
    optimization = options.optimization(len(usable), paper)
    plan = Plan(source.parts, optimization.batch_size, 0)
    return Stage(source, usable, Fitting(optimization, plan, options.precision, options.micro_batch))


def _images(subject: Subject, data: DataSet, chat: Chat, options: Options) -> ImageInput:
    """A frozen tower's patches if memory holds them, otherwise pixels."""
    decoded = pixels(subject.tower, options)
    if subject.full or not options.memory:
        return decoded
    fixed = DecodedImages(Transform(subject.tower.size, (1.0, 1.0), train=False))
    source, tower = ConversationSource.of(data, fixed, chat), copy.deepcopy(subject.tower)
    what = f"images of {data.name}"
    return held_patches(source, tower, options.device, options.memory, options.track, what) or decoded


def _shown(data: DataSet) -> npt.NDArray[np.bool_]:
    """Which rows have an image."""
    if data.manifest.kind == "pairs":
        return np.ones(len(data), dtype=bool)
    reader = Reader(data, ["segments.list.element.kind"], keep_groups=1)
    return np.array(
        [
            any(segment["kind"] == "image" for segment in segments or ())
            for group in range(len(data.manifest.row_groups))
            for segments in reader.group(group)["segments"].to_pylist()
        ]
    )


def _fit(
    subject: Subject,
    language: Language,
    first: Stage,
    second: Stage,
    rate: float,
    seed: int,
    bad: dict[int, str],
    options: Options,
) -> DialogueTransfer:
    tower = copy.deepcopy(subject.tower)
    config = DialogueTransferConfig(
        frozen=not subject.full, tower_lr_factor=subject.factor, patches="last"
    )  # see `_cut`
    inputs = Inputs(language.vocab_size, tower.width, tower, language_model=language.make(seed))
    module = DialogueTransfer.build(config, inputs, seed).to(options.device)
    module.learn("projector")
    module = _trained(module, first, first.fitting, seed, {})
    module.learn("instructions")
    return _trained(module, second, with_rate(second.fitting, rate), seed, bad)


def _trained(
    module: DialogueTransfer, stage: Stage, fitting: Fitting, seed: int, bad: dict[int, str]
) -> DialogueTransfer:
    used = np.zeros(stage.source.rows, dtype=bool)
    used[stage.usable] = True
    return trained(module, stage.reader(seed, bad), used, fitting, seed)


@torch.no_grad()
def _loss(module: DialogueTransfer, stage: Stage, rows: Ints, options: Options) -> float:
    """Nats a learnt token."""
    read, total, weight = stage.reader(0, {}), 0.0, 0
    for begin in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[begin : begin + ROWS_AT_ONCE]
        batch = read(0, some, np.zeros_like(some)).to(options.device)
        features = module(batch)
        learnt = int((batch.target[:, 1:] & batch.valid[:, None]).sum())  # type: ignore[attr-defined]
        total, weight = total + float(features.token_loss_B1.sum()), weight + learnt
    return total / max(weight, 1)


def _rows(subject: Subject, one: Judged, results: Sequence[Scored], rate: float, seconds: float) -> list[Row]:
    """A row for each metric; the first metric's is by question where it is a mean over them."""
    rows = []
    for place, metric in enumerate(results[0].metrics):
        of_set = bool(place) or results[0].of_set
        values = [[found.metrics[metric]] for found in results]
        scores = np.array(values) if of_set else np.stack([found.right_Q for found in results])
        rows.append(
            Row(
                subject.prefix + one.row_name(metric, first=not place),
                subject.name,
                subject.mode,
                "language model",
                scores,
                one.clusters,
                f"{one.benchmark.title} {metric.replace('_', ' ')}",
                rate,
                seconds,
                of_set=of_set,
                unit=one.benchmark.unit,
                shown=metric in one.benchmark.metrics,
            )
        )
    return rows
