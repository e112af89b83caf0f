"""Transfer to captioning: an MLP and a causal language model on a tower's patches, greedy captions, COCO's scores.

The language model is a pretrained one (--language-model), trained in the frozen setting too as LCL's is, or a new one.

S seeds, Q images.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from cornerstone.data.batch import Batch
from cornerstone.data.pairs.drawing import TextDraws
from cornerstone.data.pairs.image_input import ImageInput
from cornerstone.data.pairs.source import PairEvaluation, PairSource
from cornerstone.data.plan import Plan
from cornerstone.data.shards import DataSet
from cornerstone.data.source import Ints, Part
from cornerstone.data.texts import TextFormat, TextInput
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.captions import CaptionScores, score_captions
from cornerstone.evaluation.ptb import Tokenize, tokenizer
from cornerstone.evaluation.sets import split_name
from cornerstone.evaluation.tasks.caption import raw_captions
from cornerstone.models.attention_pooling import usual_heads
from cornerstone.models.caption_transfer import CaptionTransfer
from cornerstone.models.method import Inputs
from cornerstone.recipes.caption_transfer import CaptionTransferConfig
from cornerstone.recipes.language import CausalText
from cornerstone.transfer.fitting import Fitting, best_rate, held_out, trained, with_rate
from cornerstone.transfer.images import ROWS_AT_ONCE
from cornerstone.transfer.language import Language, open_language
from cornerstone.transfer.options import TOKEN_LIMIT, Options, Paper
from cornerstone.transfer.patches import pair_images
from cornerstone.transfer.result import Result, Row, few_seeds
from cornerstone.transfer.subjects import Subject, compared, subjects
from cornerstone.transfer.towers import patch_count

LAION_COCO = Paper(20_000, 512, warmup=1_000, rows=10_000_000, learning_rates=(1e-4, 3e-4, 1e-3))
"""LCL's training on 10 million pairs of LAION-COCO."""
SHOWN = {"cider": "CIDEr", "bleu4": "BLEU@4", "rouge_l": "ROUGE-L"}


@dataclass(frozen=True)
class Captions:
    """The training and test pairs, and how their texts are read."""

    train: DataSet
    test: DataSet
    name: str
    texts: TextInput
    language: Language
    references: dict[str, list[str]]
    """Of each test image, by its row."""
    tokenize: Tokenize


def caption_by_transfer(model: str, options: Options) -> Result:
    """Every row of the table for the tower that `model` names."""
    start = time.perf_counter()
    measured = list(subjects(model, options, factor=1.0))
    data = _opened(options, patch_count(measured[0].tower))
    rows: list[Row] = []
    notes = [*few_seeds(options.seeds), *data.language.notes]
    for subject in measured:
        options.say(
            f"{subject.name}, {subject.mode}: {len(data.train):,} training pairs, {len(data.test):,} test images"
        )
        found, said = _measured(subject, data, options)
        rows += found
        notes += [note for note in said if note not in notes]
    notes += compared(rows, "cider")
    return Result(data.name, tuple(rows), tuple(notes), time.perf_counter() - start)


def _opened(options: Options, patches: int) -> Captions:
    """The data, and the language model for images of `patches`.

    CornerstoneError if there is no tokenizer, or if no test image has a raw caption.
    """
    if options.captions != "raw":
        raise CornerstoneError("Captioning is trained and judged on raw captions: leave out --captions.")
    name, folder = split_name(options.test)
    train, test = DataSet.open(options.train, "pairs"), DataSet.open(folder, "pairs")
    limit = options.limit(TOKEN_LIMIT)
    language = open_language(options, train.location, patches + limit)
    references = raw_captions(test)
    texts = TextInput("plain", language.tokenizer, limit, ends=language.ends)
    return Captions(train, test, name or test.name, texts, language, references, tokenizer(options.say))


def _measured(subject: Subject, data: Captions, options: Options) -> tuple[list[Row], tuple[str, ...]]:
    start = time.perf_counter()
    images = pair_images(subject, (data.train, data.test), data.texts, options)
    form, optimization = data.texts.open(), options.optimization(len(data.train), LAION_COCO)
    parts = (Part(tuple(shard.row_groups for shard in data.train.manifest.shards)),)
    fitting = Fitting(optimization, Plan(parts, optimization.batch_size, 0), options.precision, options.micro_batch)
    draws = TextDraws(0, 0)
    source = PairSource((data.train.location.uri,), parts, images[0], data.texts, draws)
    usable = np.arange(len(data.train))
    held = held_out(usable, options.held_share)

    def fitted(rows: Ints, rate: float, seed: int) -> CaptionTransfer:
        seeded = replace(source, draws=replace(draws, seed=seed))
        return _fit(subject, seeded, data.language, rows, with_rate(fitting, rate), seed, options)

    def reached(rate: float) -> float:
        return -_loss(fitted(np.setdiff1d(usable, held), rate, 0), source, held, options)

    what = f"minus the loss of {len(held):,} held-out training captions"
    rate = best_rate(options.rates(LAION_COCO), reached, options.say, what)
    results = []
    for seed in range(options.seeds):
        results.append(_scores(fitted(usable, rate, seed), data, images[1], form, options))
        cider, bleu = results[-1].cider, results[-1].bleu[3]
        options.say(f"  seed {seed}: CIDEr {cider:.1f}, BLEU@4 {bleu:.1f}, {time.perf_counter() - start:.1f} s")
    return _rows(subject, results, rate, time.perf_counter() - start), results[0].notes


def _fit(
    subject: Subject,
    source: PairSource,
    language: Language,
    rows: Ints,
    fitting: Fitting,
    seed: int,
    options: Options,
) -> CaptionTransfer:
    tower, width = copy.deepcopy(subject.tower), options.text_width
    positions = patch_count(tower) + options.limit(TOKEN_LIMIT)
    config = CaptionTransferConfig(
        CausalText(width, options.text_layers, usual_heads(width), positions=positions),
        frozen=not subject.full,
        tower_lr_factor=subject.factor,
        language_lr_factor=options.language_lr_factor,
    )
    brought = language.make(seed) if language.pretrained else None
    inputs = Inputs(language.vocab_size, tower.width, tower, language_model=brought)
    module = CaptionTransfer.build(config, inputs, seed).to(options.device)
    opened, used = source.open(), np.zeros(source.rows, dtype=bool)
    used[rows] = True

    def read(step: int, planned: Ints, epochs: Ints) -> Batch:
        return source.batch(step, opened.take(planned, epochs))

    return trained(module, read, used, fitting, seed)


@torch.no_grad()
def _loss(module: CaptionTransfer, source: PairSource, rows: Ints, options: Options) -> float:
    """Nats a token of one caption of each row."""
    opened, total, tokens = source.open(), 0.0, 0
    for first in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[first : first + ROWS_AT_ONCE]
        batch = source.batch(0, opened.take(some, np.zeros_like(some))).to(options.device)
        total += float(module(batch).token_loss_B1.sum())
        tokens += int(((batch.raw_length - 1).clamp(min=0) * batch.valid).sum())
    return total / max(tokens, 1)


def _scores(
    module: CaptionTransfer, data: Captions, images: ImageInput, form: TextFormat, options: Options
) -> CaptionScores:
    """Greedy captions of the test images against their references; an image that cannot be read has an empty caption."""
    source = PairEvaluation(data.test.location.uri, len(data.test), images.for_evaluation(""), data.texts, ())
    opened, written = source.open(), dict.fromkeys(data.references, "")
    for first in range(0, len(data.test), ROWS_AT_ONCE):
        rows = np.arange(first, min(first + ROWS_AT_ONCE, len(data.test)))
        batch = source.batch(0, opened.take(rows, np.zeros_like(rows)))
        if not len(batch):
            continue
        found = module.generate(batch.image.to(options.device), form.first, form.last, form.max_tokens - 2)
        for row, ids in zip(batch.row.tolist(), found, strict=True):
            if str(row) in written:
                written[str(row)] = form.tokenizer.decode(ids, skip_special_tokens=True)
    return score_captions(written, data.references, data.tokenize)


def _rows(subject: Subject, results: Sequence[CaptionScores], rate: float, seconds: float) -> list[Row]:
    cluster = np.arange(len(results[0].cider_N))
    each = {
        "cider": np.stack([scores.cider_N for scores in results]),
        "bleu4": np.array([[scores.bleu[3]] for scores in results]),
        "rouge_l": np.stack([scores.rouge_l_N for scores in results]),
    }
    return [
        Row(
            subject.prefix + name,
            subject.name,
            subject.mode,
            "language model",
            each[name],
            cluster,
            label,
            rate,
            seconds,
            of_set=name == "bleu4",
            unit="",
        )
        for name, label in SHOWN.items()
    ]
