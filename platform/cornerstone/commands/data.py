"""`cornerstone data scenes`, `import`, `derive` and `mix`: where data sets come from."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import tyro

from cornerstone.commands.terminal import bar, say
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    from cornerstone.data.importers.core import ImportReport


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
            manifest = write_scenes(self.out, pairs=self.pairs, progress=bar("drawing"), **world)
            place = Location.of(self.out)
            place.join(FILE).write_text(train_wordpiece(texts_of(DataSet.open(place))))
        else:
            folder = Location.of(self.out)
            if folder.name != self.set:
                raise CornerstoneError(
                    f"An evaluation set lies in a folder of its name: --out {folder.join(self.set)}."
                )
            manifest = write_evaluation_sets(
                folder.parent, images=self.pairs, sets=[self.set], progress=bar("drawing"), **world
            )[self.set]
        say(f"{manifest.rows:,} rows of {manifest.name} in {self.out} (content {manifest.content_hash})")


@dataclass(frozen=True)
class ImportCommand:
    """Bring image-text pairs or interleaved documents of another layout into shards."""

    format: tyro.conf.Positional[str]
    """pairs-jsonl, webdataset, img2dataset, cc-tsv, dreamlip-csv, hf-parquet, coco, karpathy,
    flickr30k, dci, iiw, sharegpt4v, urban1k, imagefolder;
    documents: mmc4, obelics."""
    src: tyro.conf.Positional[str]
    """What to read: a list beside its image folder, a tar, a folder of tars or of a layout's own."""
    out: str
    """A new folder or URI."""
    images: str | None = None
    """Folder that image names are relative to; by default the list's own. Of pairs-jsonl, cc-tsv and
    dreamlip-csv also a data set: its images are found by key or address (imported by img2dataset, say)."""
    image: str | None = None
    """pairs-jsonl, cc-tsv, dreamlip-csv, hf-parquet: the field that names an image or holds it, if not by its usual name."""
    raw: tuple[str, ...] = ()
    """Fields with the texts that came with the image: a name, or a position in a list (captions.0)."""
    long: tuple[str, ...] = ()
    """Fields with detailed descriptions."""
    where: tuple[str, ...] = ()
    """FIELD=VALUE conditions, all of which must hold."""
    label: str | None = None
    """Field with the class name."""
    class_names: str | None = None
    """imagefolder: a file with the classes' names by folder, a JSON object or lines `n01440764 tench`."""
    name: str | None = None
    """The data set's name; by default the folder's."""
    first: int | None = None
    """Lists of whole entries (coco to imagefolder): take the first ones alone, as ShareGPT4V-1k does."""
    limit_rows: int | None = None
    """Take so many rows of the random order."""
    seed: int = 0
    """Decides the random order in which rows are written."""

    def run(self) -> None:
        """Import with Ray Data and say what was left out."""
        from cornerstone.data.importers import ImportOptions, check, import_pairs
        from cornerstone.runtime.cluster import connect, stoppable

        names = (
            "images",
            "image",
            "class_names",
            "first",
            "raw",
            "long",
            "where",
            "label",
            "name",
            "limit_rows",
            "seed",
        )
        options = ImportOptions(**{name: getattr(self, name) for name in names})
        check(self.format, self.src, self.out, options)  # what cannot work is refused before Ray starts
        with connect(say), stoppable("The same command goes on after what is finished.", say):
            report = import_pairs(self.format, self.src, self.out, options, progress=bar("importing"))
        _tell(report)


@dataclass(frozen=True)
class DeriveCommand:
    """Make documents of pairs (laion-random), or pairs of documents (mmc4-pair), as LCL's tables need them."""

    kind: tyro.conf.Positional[str]
    """laion-random: a document for each pair; mmc4-pair: a pair for each well matched image."""
    data: tyro.conf.Positional[str]
    """Folder or URI of shards."""
    out: str
    """A new folder or URI."""
    role: Literal["raw", "long"] = "raw"
    """laion-random: which text of a pair; of several, one is drawn."""
    min_sim: float = 0.24
    """mmc4-pair: least similarity of an image and its sentence."""
    seed: int = 0
    name: str | None = None
    """The data set's name; by default the folder's."""

    def run(self) -> None:
        """Derive with Ray Data and say what was left out."""
        from cornerstone.data.derive import check, derive
        from cornerstone.runtime.cluster import connect, stoppable

        check(self.kind, self.data, self.out)  # what cannot work is refused before Ray starts
        with connect(say), stoppable("The same command goes on after what is finished.", say):
            options: dict[str, Any] = {"role": self.role, "min_similarity": self.min_sim, "seed": self.seed}
            report = derive(self.kind, self.data, self.out, name=self.name, progress=bar("deriving"), **options)
        _tell(report)


def _tell(report: ImportReport) -> None:
    say(f"{report.rows:,} rows in {report.folder} (content {report.manifest.content_hash}), {report.seconds:.0f} s")
    if report.kept:
        say(
            f"{report.kept:,} pieces of work had been finished before, by an import that was interrupted, and were kept"
        )
    if report.mended:
        say(f"{report.mended:,} texts had bytes that are no UTF-8: each stands as \N{REPLACEMENT CHARACTER}")
    if report.quarantined:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in report.reasons.items())
        say(f"{report.quarantined:,} left out: {reasons}; see {report.folder}/quarantine.jsonl")


@dataclass(frozen=True)
class MixCommand:
    """Mix data sets: each is passed over as often as its weight says, and no row is copied."""

    data: tyro.conf.Positional[tuple[str, ...]]
    """DIR=WEIGHT for each data set: 1 for one pass an epoch, 2 for two, 0.5 for half of one. Mixtures may be mixed."""
    out: str
    """A new folder or URI; it will hold a manifest alone."""
    name: str = ""
    """The mixture's name; by default the folder's."""

    def run(self) -> None:
        """Check the members, write the manifest, and say what an epoch holds."""
        from cornerstone.data.mixture import write_mixture
        from cornerstone.data.storage import absolute

        weighted = []
        for given in self.data:
            folder, separator, weight = given.rpartition("=")
            if not separator or "/" in weight:
                raise CornerstoneError(f"{given!r}: expected DIR=WEIGHT, as in data/cc3m=1.")
            weighted.append((absolute(folder), weight))
        manifest = write_mixture(self.out, weighted, self.name)
        kind = manifest.members[0].kind
        total = sum(member.rows * float(Fraction(member.weight)) for member in manifest.members)
        for member in manifest.members:
            share = member.rows * float(Fraction(member.weight)) / total
            say(f"{share:6.1%}  {member.rows:,} {kind} × {member.weight}  {member.data}")
        say(f"{manifest.name}: {total:,.0f} {kind} an epoch in {self.out} (content {manifest.content_hash})")
