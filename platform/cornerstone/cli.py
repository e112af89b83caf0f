"""The command line `cornerstone`: a thin front over the packages. Heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from cornerstone.errors import CornerstoneError, did_you_mean
from cornerstone.recipes.options import RunOptions, parse

console = Console() if sys.stdout.isatty() else Console(soft_wrap=True, width=200)  # a log has no width of its own


say = partial(console.print, markup=False, highlight=False)  # names and paths may hold brackets


@dataclass(frozen=True)
class ScenesCommand:
    """Write the embedded data set, or one of its evaluation sets, as shards."""

    out: str
    """A new folder or URI."""
    pairs: int
    """Pictures to draw."""
    set: Literal["train", "long-human", "long-captioner", "short", "class", "lookalike", "validation"] = "train"
    image_size: int = 64
    """Side of a picture in pixels, 32 to 224."""
    seed: int = 0

    def run(self) -> None:
        """Draw, write, and keep a tokenizer beside training shards."""
        from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
        from cornerstone.data.scenes.write import write_evaluation_sets, write_scenes
        from cornerstone.data.shards import DataSet
        from cornerstone.data.storage import Location
        from cornerstone.data.texts import FILE

        world = {"seed": self.seed, "image_size": self.image_size}
        if self.set == "train":
            manifest = write_scenes(self.out, pairs=self.pairs, progress=_bar("drawing"), **world)
            place = Location.of(self.out)
            place.join(FILE).write_text(train_wordpiece(texts_of(DataSet.open(place))))
        else:
            folder = Location.of(self.out)
            parent, _, name = folder.uri.rstrip("/").rpartition("/")
            if name != self.set:
                raise CornerstoneError(
                    f"An evaluation set lies in a folder of its name: --out {folder.join(self.set)}."
                )
            manifest = write_evaluation_sets(
                parent, images=self.pairs, sets=[self.set], progress=_bar("drawing"), **world
            )[self.set]
        say(f"{manifest.rows:,} rows of {manifest.name} in {self.out} (content {manifest.content_hash})")


@dataclass(frozen=True)
class ImportCommand:
    """Bring image-text pairs of another layout into shards."""

    format: tyro.conf.Positional[str]
    """pairs-jsonl or webdataset."""
    src: tyro.conf.Positional[str]
    """What to read: a list beside its image folder, a tar, a folder of tars."""
    out: str
    """A new folder or URI."""
    images: str | None = None
    """Folder that image names are relative to; by default the list's own."""
    raw: tuple[str, ...] = ()
    """Fields with the texts that came with the image: a name, or a position in a list (captions.0)."""
    long: tuple[str, ...] = ()
    """Fields with detailed descriptions."""
    where: tuple[str, ...] = ()
    """FIELD=VALUE conditions, all of which must hold."""
    label: str | None = None
    """Field with the class name."""
    name: str | None = None
    """The data set's name; by default the folder's."""
    limit_rows: int | None = None
    seed: int = 0
    """Decides the random order in which rows are written."""

    def run(self) -> None:
        """Import with Ray Data and say what was left out."""
        from cornerstone.data.importers import import_pairs
        from cornerstone.training.cluster import connect

        with connect(say):
            fields = {
                k: getattr(self, k) for k in ("images", "raw", "long", "where", "label", "name", "limit_rows", "seed")
            }
            report = import_pairs(self.format, self.src, self.out, progress=_bar("importing"), **fields)
        say(f"{report.rows:,} rows in {self.out} (content {report.manifest.content_hash}), {report.seconds:.0f} s")
        if report.quarantined:
            reasons = ", ".join(f"{count:,} × {reason}" for reason, count in report.reasons.items())
            say(f"{report.quarantined:,} left out: {reasons}; see {self.out}/quarantine.jsonl")


@dataclass(frozen=True)
class FeaturesCommand:
    """Run the locked image tower over shards once, so that trials read vectors and decode no image."""

    data: tyro.conf.Positional[str]
    """Folder or URI of shards."""
    out: str
    """A new folder or URI for the features."""
    recipe: str = "scenes"
    """The preset whose tower and image size are used."""
    image_tower: str | None = None
    """Another tower: a timm model name, or a folder in timm's layout."""
    dtype: Literal["float16", "float32"] = "float16"
    gpus_per_actor: float = 0.0
    """0: one where the cluster has GPUs."""
    actors: int = 0
    """Copies of the tower at work; 0: one a GPU, or one a CPU."""

    def run(self) -> None:
        """Compute and store."""
        from cornerstone.data.shards import DataSet, refuse_existing
        from cornerstone.data.storage import Location
        from cornerstone.recipes import preset
        from cornerstone.training.cluster import connect
        from cornerstone.training.features import store_features

        recipe = preset(self.recipe)
        DataSet.open(self.data, "pairs")  # what cannot work is refused before Ray starts
        refuse_existing(Location.of(self.out))
        if self.image_tower is not None:
            recipe = recipe.with_image(name=self.image_tower)
        with connect(say):
            manifest = store_features(
                self.data,
                self.out,
                recipe,
                self.dtype,
                actors=self.actors,
                gpus_per_actor=self.gpus_per_actor,
                say=say,
            )
        say(f"{manifest.rows:,} features of width {manifest.source['width']} in {self.out}")


@dataclass(frozen=True)
class TrainCommand(RunOptions):
    """Train one recipe on Ray Train workers."""

    resume: Annotated[str, tyro.conf.arg(metavar="RUN")] = ""
    """The id of an interrupted run (it was printed at its start): go on from its last checkpoint."""
    json: str = ""
    """Write the result's numbers to this file."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Judge a saved model zero-shot."""

    checkpoint: tyro.conf.Positional[str]
    """The folder `model` that a run left, or the run's folder."""
    data: tuple[str, ...]
    """Evaluation sets, `[NAME=]DIR`."""
    task: Literal["retrieval", "classification", "lookalike"] = "retrieval"
    json: str = ""
    """Write the numbers to this file."""

    def run(self) -> None:
        """Encode, judge, print."""
        from rich.progress import track

        from cornerstone import load
        from cornerstone.evaluation.local import evaluate_model
        from cornerstone.evaluation.sets import only_task, open_sets

        sets = only_task(open_sets(self.data), self.task)
        model = load(self.checkpoint)

        def show(steps: Iterable[int], name: str) -> Iterable[int]:
            return track(steps, f"evaluating {name}", console=console, disable=not console.is_terminal)

        metrics = evaluate_model(model, self.checkpoint, sets, show)
        _show(metrics, self.json)


COMMANDS: dict[tuple[str, ...], tuple[type[Any], str]] = {
    ("data", "scenes"): (ScenesCommand, "write the embedded data set as shards"),
    ("data", "import"): (ImportCommand, "bring other layouts into shards"),
    ("features",): (FeaturesCommand, "run a locked image tower over shards once"),
    ("train",): (TrainCommand, "train one recipe"),
    ("evaluate",): (EvaluateCommand, "judge a saved model zero-shot"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, or with a clear error and another status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _dispatch(given)
    except CornerstoneError as error:
        console.print(f"[bold red]Error:[/] {_escaped(error)}", highlight=False)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _dispatch(given: list[str]) -> None:
    if (
        not given
        or given[0] in ("-h", "--help")
        or given == ["data"]
        or given[:2] in (["data", "-h"], ["data", "--help"])
    ):
        _help()
        return
    words = tuple(given[:2]) if given[0] == "data" else (given[0],)
    if words not in COMMANDS:
        raise CornerstoneError(
            f"Unknown command {' '.join(words)!r}{did_you_mean(' '.join(words), [' '.join(c) for c in COMMANDS])}"
        )
    command, _ = COMMANDS[words]
    rest, prog = given[len(words) :], f"cornerstone {' '.join(words)}"
    if command is TrainCommand:
        _train(parse(TrainCommand, rest, prog, TrainCommand.__doc__ or ""))
    else:
        tyro.cli(command, args=rest, prog=prog, description=command.__doc__).run()


def _train(options: TrainCommand) -> None:
    if options.dry_run:
        from cornerstone.training.dry_run import dry_run

        for line in dry_run(*options.resolved(), trials=1, experiment="train"):
            say(line)
        return
    from cornerstone.training.single import train_one

    outcome = train_one(options, options.resume, console)
    _show(outcome.metrics, options.json)
    say(f"model: {outcome.model}")


def _help() -> None:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for words, (_, purpose) in COMMANDS.items():
        table.add_row(f"cornerstone {' '.join(words)}", purpose)
    console.print("Language-image pre-training on Ray. Each command has --help.\n")
    console.print(table)
    console.print("\nExperiments: python experiments/ablate_corner_tokens.py --help")


def _show(metrics: dict[str, float], path: str) -> None:
    table = Table(box=None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in metrics.items():
        table.add_row(name, f"{value:.0f}" if name.endswith("rows_left_out") else f"{value:.2f} %")
    console.print(table)
    if path:
        from cornerstone.data.storage import Location

        Location.of(path).write_text(json.dumps(metrics, indent=1) + "\n")  # makes its folder: a long run has ended


def _bar(what: str) -> Callable[..., None]:
    """A function that shows how much is done of how much there is, in a terminal."""
    from rich.progress import Progress

    if not console.is_terminal:
        return lambda *told: None
    progress = Progress(console=console)
    task = progress.add_task(what, total=None)
    progress.start()

    def show(done: int, total: int, *rest: int) -> None:
        progress.update(task, completed=done, total=total)
        if done >= total:
            progress.stop()

    return show


def _escaped(error: Exception) -> str:
    return str(error).replace("[", r"\[")


if __name__ == "__main__":
    main()
