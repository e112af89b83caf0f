"""A study of LoTLIP on the built-in scenes: do corner tokens help beyond the weight that they give long captions?

    python -m benchmarks.corners --device cuda --processes 16 --out study.json
    python -m benchmarks.corners --show study.json

Bare loops without Ray: the platform's pairs, model, engine and evaluation, many runs beside one another on one device. The
locked tower encodes every image once, and the captions of some epochs are drawn and tokenized once. Points are those of
Table 3 with controls of equal weight; settings change one thing about the data. Seeds differ in initialisation, in the order
of the rows, and in which epoch's captions are read first; the drawn captions themselves are the same.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch

from benchmarks.report import table
from benchmarks.study import Measurement, add_options, spread, study
from cornerstone.data.layout import Layout
from cornerstone.data.pairs.batch import EvaluationBatch, PairBatch
from cornerstone.data.pairs.source import PairSource
from cornerstone.data.plan import Plan
from cornerstone.data.stream import Stream
from cornerstone.evaluation.evaluator import evaluate
from cornerstone.evaluation.judged import metrics_of
from cornerstone.hashing import digest
from cornerstone.models.image_tower import build_image_tower
from cornerstone.recipes import BertText, LongClipConfig, LotlipConfig, Recipe, preset
from cornerstone.recipes.lotlip import from_scratch, with_long_loss_times, with_sub_captions
from cornerstone.recipes.pairs import PairData
from cornerstone.sweeps.statistics import paired_difference
from cornerstone.training.build import build_method, build_tower
from cornerstone.training.engine import PlainEngine
from cornerstone.training.prepare import Preparer
from cornerstone.training.prepared import Prepared
from cornerstone.training.schedule import learning_rate

SETTINGS: tuple[str, ...] = (
    "k = 3",
    "k = 1",
    "k = 2",
    "k = 6",
    "captioner A",
    "captioner B",
    "captioner C",
    "4 × 4 cells",
    "4,000 pairs",
    "64,000 pairs",
    "limit 16",
    "limit 32",
    "limit 96",
    "limit 128",
    "limit 128, k = 6",
    "from scratch",
    "from scratch, rate × 0.5",
    "from scratch, rate × 0.25",
)
BASE = SETTINGS[0]
CORE = ("0", "2", "2, no mask", "0, long × 3", "2, equal balance")
ONLY_BASE = ("1", "4", "0, long × 2", "0, long × 5", "2 registers", "Long-CLIP", "short only")
PAIRS = (
    ("2", "0"),
    ("0, long × 3", "0"),
    ("2", "0, long × 3"),
    ("2, no mask", "0, long × 3"),
    ("2", "2, no mask"),
    ("1", "0, long × 2"),
    ("4", "0, long × 5"),
    ("2, equal balance", "0"),
    ("2 registers", "0"),
    ("Long-CLIP", "0"),
    ("short only", "0"),
)
"""Differences that the study is about: what a point adds, and what it adds to a control of the same weights."""
COLUMNS = {
    "class": ("eval/class/top1",),
    "long": ("eval/long-captioner/i2t_r1", "eval/long-captioner/t2i_r1"),
    "human": ("eval/long-human/i2t_r1", "eval/long-human/t2i_r1"),
    "short": ("eval/short/i2t_r1", "eval/short/t2i_r1"),
}
"""Each the mean of its metrics: both directions of a retrieval."""


@dataclass(frozen=True)
class Run:
    """One training."""

    setting: str
    point: str
    seed: int

    @property
    def name(self) -> str:
        """As its row is named."""
        return f"{self.setting}: {self.point}"

    def recipe(self, options: argparse.Namespace) -> Recipe:
        """Its recipe: `scenes-long` with the study's sizes."""
        recipe = preset("scenes-long").with_steps(options.steps)
        recipe = recipe.with_optimization(warmup_steps=options.steps // 10, batch_size=options.batch)
        recipe = recipe.with_evaluation(every=max(options.steps // options.budgets, 1))
        data = recipe.data
        assert isinstance(data, PairData)
        scenes = replace(data.scenes, pairs=options.pairs, evaluation_images=options.images)
        if self.setting == "64,000 pairs":
            scenes = replace(scenes, pairs=4 * options.pairs)
        if self.setting == "4 × 4 cells":
            scenes = replace(scenes, cells=4, min_objects=6, max_objects=10)
        recipe = recipe.with_data(features="online", scenes=scenes)
        if self.setting == "4,000 pairs":
            recipe = recipe.with_data(limit_rows=options.pairs // 4)
        recipe = replace(self._with_texts(recipe), seed=self.seed)
        recipe = self._with_point(recipe)
        return from_scratch(recipe) if self.setting.startswith("from scratch") else recipe

    def _with_texts(self, recipe: Recipe) -> Recipe:
        for part in self.setting.split(", "):
            name, _, value = part.rpartition(" ")
            if name == "k =":
                recipe = with_sub_captions(recipe, int(value))
            elif name == "captioner":
                recipe = recipe.with_data(captioners=(value,))
            elif name == "limit":
                recipe = recipe.with_text(token_limit=int(value))
            elif name == "rate ×":
                rate = recipe.optimization.learning_rate
                recipe = recipe.with_optimization(learning_rate=float(value) * rate)
        return recipe

    def _with_point(self, recipe: Recipe) -> Recipe:
        method = recipe.method
        assert isinstance(method, LotlipConfig)
        corners, *how = self.point.split(", ")
        if self.point == "Long-CLIP":
            text = method.text
            plain = BertText(text.name, text.width, text.layers, text.heads, text.token_limit, text.dropout)
            return replace(recipe, method=LongClipConfig(method.image, plain))
        if self.point == "short only":
            return with_sub_captions(recipe.with_text(corner_tokens=0), 0)
        if self.point == "2 registers":
            return recipe.with_text(corner_tokens=2, corner_mask=False, registers=True)
        recipe = recipe.with_text(corner_tokens=int(corners), corner_mask="no mask" not in how)
        if "equal balance" in how:
            recipe = recipe.with_loss(balance="equal")
        weights = [int(one.removeprefix("long × ")) for one in how if one.startswith("long")]
        return with_long_loss_times(recipe, weights[0]) if weights else recipe


@dataclass(frozen=True)
class NoImages:
    """An image input that reads nothing: the captions of a row are drawn alone."""

    columns: tuple[str, ...] = ()
    shape: tuple[int, ...] = (1,)
    number: pa.DataType = field(default_factory=pa.float32)

    def open(self) -> NoImages:
        """Nothing is opened."""
        return self

    def for_evaluation(self, features: str) -> NoImages:
        """Evaluation sets keep their images; this is for training rows."""
        return self

    def read(self, out: Any, places: Any, table: Any, rows: Any, epochs: Any, seed: int | None) -> list[str]:
        """Every row is usable."""
        return [""] * len(rows)


class KeptPairs:
    """The batches of a plan, from captions and features that stay on a device."""

    def __init__(self, plan: Plan, epochs: list[PairBatch], features: torch.Tensor, first: int) -> None:
        self.plan, self.epochs, self.features, self.first = plan, epochs, features, first

    def batch(self, step: int) -> PairBatch:
        """The rows of a step, with the captions of the epoch of its first row, counted from `first`; later epochs repeat."""
        rows, epochs = self.plan.batch(step)
        kept = self.epochs[(self.first + int(epochs[0])) % len(self.epochs)]
        at = torch.from_numpy(rows).to(self.features.device)
        values = {f.name: getattr(kept, f.name) for f in fields(kept)}
        values = {name: x[at] for name, x in values.items() if isinstance(x, torch.Tensor)}
        return replace(kept, **{**values, "step": step, "image": self.features[at]})


def _texts_file(folder: Path, prepared: Prepared, epoch: int) -> Path:
    """Where the captions of an epoch are kept: a file for each way to draw and to tokenize them."""
    train = prepared.train
    assert isinstance(train, PairSource)
    drawn = {"folders": train.folders, "draws": asdict(replace(train.draws, seed=0)), "texts": asdict(train.texts)}
    return folder / f"texts-{digest(drawn)}-{epoch}.pt"


def _features_file(folder: Path, prepared: Prepared) -> Path:
    read = [prepared.train.folders, _image_config(prepared).locked]  # type: ignore[attr-defined]
    return folder / f"features-{digest(read)}.pt"


def _evaluation_file(folder: Path, prepared: Prepared) -> Path:
    texts = prepared.evaluation_texts
    read = {"sets": [one.folder for one in prepared.sets], "texts": asdict(texts) if texts else None}
    read["locked"] = _image_config(prepared).locked
    return folder / f"evaluation-{digest(read)}.pt"


def write_texts(prepared: Prepared, epoch: int, file: Path) -> None:
    """Draw and tokenize the captions of all rows in an epoch, padded to the token limit."""
    torch.set_num_threads(1)
    train = prepared.train
    assert isinstance(train, PairSource)
    source = replace(train, images=NoImages(), draws=replace(train.draws, seed=0))
    rows = np.arange(source.rows)
    torch.save(source.batch(0, source.open().take(rows, np.full_like(rows, epoch))), file)


def write_features(prepared: Prepared, file: Path) -> None:
    """Encode the image of every training row; for a tower that is trained, its pixels in one fixed crop."""
    torch.set_num_threads(1)
    train, rows = prepared.train.open(), np.arange(prepared.train.rows)
    parts = (cast(PairBatch, prepared.train.batch(0, train.take(part, part * 0))) for part in np.array_split(rows, 32))
    encoded = _encoder(prepared)
    torch.save(torch.cat([encoded(part.image) for part in parts]), file)


def write_evaluation(prepared: Prepared, file: Path) -> None:
    """Decode and tokenize every evaluation set, its images as features."""
    torch.set_num_threads(1)
    due = next(step for step in range(prepared.recipe.optimization.steps) if prepared.stream().evaluates_after(step))
    stream = Stream.local(Layout(prepared.stream(), 1), 0, due)
    stream.batch(due)
    encoded = _encoder(prepared)
    judged: list[tuple[int, EvaluationBatch]] = list(stream.evaluation(due))  # type: ignore[arg-type]
    torch.save([(place, replace(batch, image=encoded(batch.image))) for place, batch in judged], file)


def _image_config(prepared: Prepared) -> Any:
    return prepared.recipe.method.image_tower


def _encoder(prepared: Prepared) -> Callable[[torch.Tensor], torch.Tensor]:
    """From pixels to what a training reads: a locked tower's features, or the pixels themselves."""
    if not _image_config(prepared).locked:
        return torch.Tensor.clone
    tower = build_image_tower(_image_config(prepared)).lock()

    @torch.inference_mode()
    def encoded(image: torch.Tensor) -> torch.Tensor:
        return torch.cat([tower(part).pooled for part in image.split(256)]).clone()

    return encoded


def train(run: Run, options: argparse.Namespace, folder: Path) -> Iterator[Measurement]:
    """Train one run; yields what is measured at each budget of its steps."""
    device = torch.device(options.device)
    prepared = Preparer(lambda _: None).prepare(run.recipe(options))
    recipe = prepared.recipe
    features = torch.load(_features_file(folder, prepared)).to(device)
    epochs = [
        torch.load(_texts_file(folder, prepared, e), weights_only=False).to(device) for e in range(options.epochs_kept)
    ]
    pairs = KeptPairs(prepared.plan, epochs, features, first=3 * run.seed)
    judged = torch.load(_evaluation_file(folder, prepared), weights_only=False)
    texts = prepared.evaluation_texts
    tower = None if _image_config(prepared).locked else build_tower(prepared)
    model = build_method(prepared, tower).to(device)
    engine = PlainEngine(model, recipe.optimization, precision=options.precision)
    begun = time.perf_counter()
    for step in range(recipe.optimization.steps):
        report = engine.step(pairs.batch(step), learning_rate(step, recipe.optimization))
        if prepared.stream().evaluates_after(step):
            seconds = round(time.perf_counter() - begun, 1)
            model.eval()
            metrics = metrics_of(evaluate(model, judged, prepared.sets, texts.open() if texts else None, device))
            model.train()
            point = {"setting": run.setting, "point": run.point, "seed": run.seed, "name": run.name}
            found = {"loss": float(report.loss), "measured": metrics}
            yield {**point, "steps": step + 1, "seconds": seconds, **found}


def prepare(options: argparse.Namespace, runs: Sequence[Run], folder: Path) -> None:
    """Write the worlds, and every file that a training reads."""
    preparer = Preparer(print)
    jobs: dict[Path, Callable[[], None]] = {}
    for run in {(run.setting, run.point): run for run in runs}.values():
        prepared = preparer.prepare(run.recipe(options))
        for file, write in ((_features_file, write_features), (_evaluation_file, write_evaluation)):
            place = file(folder, prepared)
            jobs.setdefault(place, partial(write, prepared, place))
        for epoch in range(options.epochs_kept):
            place = _texts_file(folder, prepared, epoch)
            jobs.setdefault(place, partial(write_texts, prepared, epoch, place))
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for each in [pool.submit(job) for job in jobs.values()]:
            each.result()


def show(measured: Sequence[Measurement]) -> None:
    """For each number of steps: means over seeds, and differences between points of a setting."""
    usable = [one for one in measured if "error" not in one]
    for steps in sorted({one["steps"] for one in usable}):
        header = ["setting", "point", "seeds", *COLUMNS]
        rows: list[list[str]] = []
        for setting in SETTINGS:
            here = [one for one in usable if one["setting"] == setting and one["steps"] == steps]
            for point in (*CORE, *ONLY_BASE):
                seeds = {one["seed"]: one["measured"] for one in here if one["point"] == point}
                if not seeds:
                    continue
                means = [spread([_mean(one, names) for one in seeds.values()], 1) for names in COLUMNS.values()]
                rows.append([setting, point, str(len(seeds)), *means])
        table(f"after {steps:,} steps", header, rows)
        here = [one for one in usable if one["steps"] == steps]
        title = "differences, seed by seed, with their 95 % t-interval"
        points = [((setting, point), (setting, other)) for setting in SETTINGS for point, other in PAIRS]
        table(title, ["one", "minus", *COLUMNS], _differences(here, points))
        settings = [((setting, point), (BASE, point)) for setting in SETTINGS[1:] for point in (*CORE, *ONLY_BASE)]
        table(title, ["one", "minus", *COLUMNS], _differences(here, settings))


def _differences(
    measured: Sequence[Measurement], pairs: Sequence[tuple[tuple[str, str], tuple[str, str]]]
) -> list[list[str]]:
    """A row for each pair of (setting, point) that has two seeds or more."""
    rows = []
    for ours, theirs in pairs:
        row = [": ".join(ours), ": ".join(theirs)]
        for names in COLUMNS.values():
            found = paired_difference(_by_seed(measured, *ours, names), _by_seed(measured, *theirs, names))
            row.append(f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]")
        if found.seeds > 1:
            rows.append(row)
    return rows


def _by_seed(measured: Sequence[Measurement], setting: str, point: str, names: Sequence[str]) -> dict[int, float]:
    here = [one for one in measured if (one["setting"], one["point"]) == (setting, point)]
    return {one["seed"]: _mean(one["measured"], names) for one in here}


def _mean(metrics: Mapping[str, float], names: Sequence[str]) -> float:
    return float(np.mean([metrics[name] for name in names]))


def options() -> argparse.Namespace:
    """The command line."""
    usual = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(usual)
    usual.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    usual.add_argument("--points", nargs="+", default=list(CORE), choices=(*CORE, *ONLY_BASE))
    usual.add_argument("--base-points", nargs="*", default=list(ONLY_BASE), help=f"others, at {BASE!r} alone")
    usual.add_argument("--steps", type=int, default=2_000)
    usual.add_argument("--budgets", type=int, default=2, help="how often a run is measured")
    usual.add_argument("--batch", type=int, default=128)
    usual.add_argument("--pairs", type=int, default=16_000)
    usual.add_argument("--images", type=int, default=2_000, help="images of each evaluation set")
    usual.add_argument("--epochs-kept", type=int, default=16)
    return usual.parse_args()


def main() -> None:
    """Run, or show."""
    chosen = options()
    if chosen.show:
        show(json.loads(Path(chosen.show).read_text()))
        return
    runs = [
        Run(setting, point, seed)
        for setting in chosen.settings
        for seed in range(chosen.seeds)
        for point in [*chosen.points, *(chosen.base_points if setting == BASE else ())]
    ]
    show(study(chosen, runs, prepare, train))


if __name__ == "__main__":
    main()
