"""`cornerstone data scenes`, `import`, `derive` and `mix`: commands that create data sets."""

from __future__ import annotations

from dataclasses import dataclass, fields
from fractions import Fraction
from itertools import chain, repeat
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from cornerstone.commands.terminal import bar, say
from cornerstone.errors import CornerstoneError

if TYPE_CHECKING:
    from cornerstone.data.importers.core import ImportReport
    from cornerstone.data.manifest import Manifest


OF_DOCUMENTS = ("redundancy", "context", "mismatch", "images_per_document")
CONTINUE = "Run the same command again to continue: finished tasks are kept."


@dataclass(frozen=True)
class ScenesCommand:
    """Write the built-in data set `scenes`: pairs, documents or conversations, or one of its evaluation sets, as shards."""

    out: str
    """A new folder or URI."""
    pairs: int | None = None
    """Number of image-text pairs."""
    documents: int | None = None
    """Number of interleaved documents."""
    conversations: int | None = None
    """Number of images with questions and answers; give one of --pairs, --documents and this."""
    set: Literal[
        "train", "long-human", "long-captioner", "short", "class", "lookalike", "sentence-swap", "validation"
    ] = "train"
    """The training set, or an evaluation set of N images. Documents, conversations: train or validation."""
    image_size: int = 64
    """Image size in pixels, 32 to 224."""
    seed: int = 0
    """Seed of the images and texts."""
    redundancy: float = 0.5
    """Documents: probability that a sentence after an image repeats a fact stated before it, instead of a new one."""
    context: float = 0.75
    """Documents: probability that a sentence before an image states a fact of it, instead of suiting the topic only."""
    mismatch: float = 0.0
    """Documents: probability that an image is one of another topic, with a low similarity."""
    images_per_document: int = 6
    """Documents: most images of a document. It has one, and each of the others with probability 1/4."""

    def run(self) -> None:
        """Draw and write; training shards get a tokenizer."""
        from cornerstone.data.conversations.chat import SYSTEM
        from cornerstone.data.scenes.tokenizer import texts_of, train_wordpiece
        from cornerstone.data.shards import DataSet
        from cornerstone.data.storage import Location
        from cornerstone.data.texts import FILE

        made = {"pairs": self._pairs, "documents": self._documents, "conversations": self._conversations}
        given = {name: number for name in made if (number := getattr(self, name)) is not None}
        if len(given) != 1:
            got = " and ".join(f"--{name}" for name in given) or "none"
            raise CornerstoneError(f"Expected one of --pairs N, --documents N and --conversations N, got {got}.")
        ((name, number),) = given.items()
        if name != "documents":
            self._refuse_options_of_documents(name)
        manifest = made[name](number)
        if self.set == "train":
            place = Location.of(self.out)
            around = repeat(f"{SYSTEM} USER: ASSISTANT:", number if name == "conversations" else 0)
            place.join(FILE).write_text(train_wordpiece(chain(texts_of(DataSet.open(place)), around)))
        say(f"{manifest.rows:,} rows of {manifest.name} in {self.out} (content {manifest.content_hash})")

    def _pairs(self, pairs: int) -> Manifest:
        from cornerstone.data.scenes.write import write_evaluation_sets, write_scenes
        from cornerstone.data.storage import Location

        world: dict[str, Any] = {"seed": self.seed, "image_size": self.image_size}
        if self.set == "train":
            return write_scenes(self.out, pairs=pairs, progress=bar("drawing"), **world)
        folder = Location.of(self.out)
        if folder.name != self.set:
            raise CornerstoneError(
                f"The folder of an evaluation set has the set's name: --out {folder.join(self.set)}."
            )
        return write_evaluation_sets(folder.parent, images=pairs, sets=[self.set], progress=bar("drawing"), **world)[
            self.set
        ]

    def _refuse_options_of_documents(self, given: str) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        if changed := [name for name in OF_DOCUMENTS if getattr(self, name) != defaults[name]]:
            named = ", ".join(f"--{name.replace('_', '-')}" for name in changed)
            raise CornerstoneError(f"{named}: an option of documents; give --documents N instead of --{given}.")

    def _set_of(self, kind: str) -> str:
        sets = {"train": kind, "validation": f"{kind}-validation"}
        if self.set not in sets:
            raise CornerstoneError(f"--set {self.set} is a set of pairs; {kind} have {' and '.join(sets)}.")
        return sets[self.set]

    def _conversations(self, conversations: int) -> Manifest:
        from cornerstone.data.scenes.write import write_conversations

        return write_conversations(
            self.out,
            conversations=conversations,
            seed=self.seed,
            set=self._set_of("conversations"),
            image_size=self.image_size,
            progress=bar("drawing"),
        )

    def _documents(self, documents: int) -> Manifest:
        from cornerstone.data.scenes.documents import expected_worth
        from cornerstone.data.scenes.write import write_documents

        manifest = write_documents(
            self.out,
            documents=documents,
            seed=self.seed,
            set=self._set_of("documents"),
            image_size=self.image_size,
            progress=bar("drawing"),
            **{name: getattr(self, name) for name in OF_DOCUMENTS},
        )
        worth = expected_worth(manifest) / manifest.rows
        say(f"the images are worth {worth:.2f} nats a document for predicting its text")
        return manifest


@dataclass(frozen=True)
class ImportCommand:
    """Convert image-text pairs or interleaved documents from another format to shards."""

    format: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FORMAT")]
    """Pairs: pairs-jsonl, webdataset, img2dataset, cc-tsv, dreamlip-csv, hf-parquet, coco, karpathy, flickr30k, dci, iiw,
    sharegpt4v, urban1k, imagefolder. Documents: mmc4, obelics. Conversations, as documents: llava."""
    src: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="SRC")]
    """The file or folder to read: a list with image names, a tar file, or a folder in the layout of the format."""
    out: str
    """A new folder or URI."""
    images: str | None = None
    """Folder that image names are relative to; default: the folder of the list. For pairs-jsonl, cc-tsv and dreamlip-csv it
    can be a data set (imported by img2dataset, for example), whose images are found by key or URL."""
    image: str | None = None
    """pairs-jsonl, cc-tsv, dreamlip-csv, hf-parquet: the field with the image or its name; default: the usual names.
    webdataset: the ending of the image among several (`input.jpg`)."""
    raw: tuple[str, ...] = ()
    """Fields with raw captions, as they came with the image: a name, or a position in a list (captions.0)."""
    long: tuple[str, ...] = ()
    """Fields with long captions."""
    rewrite: tuple[str, ...] = ()
    """Fields with raw captions in other words, by a language model that has not seen the image (LaCLIP)."""
    foil: tuple[str, ...] = ()
    """Fields with false captions, each the long caption with one sentence made false, for `evaluate --task sentence-swap`. If a
    field's name begins with `salient`, that sentence is about the salient object."""
    where: tuple[str, ...] = ()
    """FIELD=VALUE conditions; a row must meet all of them."""
    label: str | None = None
    """Field with the class name."""
    class_names: str | None = None
    """imagefolder: a file with the class name of each folder, a JSON object or lines `n01440764 tench`."""
    name: str | None = None
    """Name of the data set; default: the folder's name."""
    first: int | None = None
    """coco to imagefolder: import only the first N entries of the list, as ShareGPT4V-1k does."""
    limit_rows: int | None = None
    """Import only N rows, the first ones of the random order."""
    follow_links: bool = False
    """Read images through symbolic links that lead out of their folder."""
    trust_keys: bool = False
    """Lists joined with a data set: join by keys even if the captions or URLs of the two sides disagree."""
    seed: int = 0
    """Seed of the random order in which rows are written."""

    def run(self) -> None:
        """Import with Ray Data, and report what was quarantined."""
        from cornerstone.data.importers import ImportOptions, check, import_pairs
        from cornerstone.runtime.cluster import connect, stoppable

        names = (
            "images",
            "image",
            "class_names",
            "first",
            "raw",
            "long",
            "rewrite",
            "foil",
            "where",
            "label",
            "name",
            "limit_rows",
            "seed",
            "follow_links",
            "trust_keys",
        )
        options = ImportOptions(**{name: getattr(self, name) for name in names})
        check(self.format, self.src, self.out, options)  # report wrong arguments before Ray starts
        with connect(say), stoppable(CONTINUE, say):
            report = import_pairs(self.format, self.src, self.out, options, progress=bar("importing"))
        _report(report)


@dataclass(frozen=True)
class DeriveCommand:
    """Make documents from pairs (laion-random), or pairs from documents (mmc4-pair), for LCL's tables."""

    kind: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="KIND")]
    """laion-random: a document for each pair; mmc4-pair: a pair for each image that matches its sentence."""
    data: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIR")]
    """Folder or URI of shards."""
    out: str
    """A new folder or URI."""
    role: Literal["raw", "long"] = "raw"
    """laion-random: role of the caption to use; one of several is drawn."""
    min_sim: float = 0.24
    """mmc4-pair: least similarity of an image and its sentence."""
    seed: int = 0
    """Seed of all draws."""
    name: str | None = None
    """Name of the data set; default: the folder's name."""

    def run(self) -> None:
        """Derive with Ray Data, and report what was quarantined."""
        from cornerstone.data.derive import check, derive
        from cornerstone.runtime.cluster import connect, stoppable

        check(self.kind, self.data, self.out)  # report wrong arguments before Ray starts
        with connect(say), stoppable(CONTINUE, say):
            options: dict[str, Any] = {"role": self.role, "min_similarity": self.min_sim, "seed": self.seed}
            report = derive(self.kind, self.data, self.out, name=self.name, progress=bar("deriving"), **options)
        _report(report)


def _report(report: ImportReport) -> None:
    say(f"{report.rows:,} rows in {report.folder} (content {report.manifest.content_hash}), {report.seconds:.0f} s")
    if report.kept:
        say(f"{report.kept:,} tasks had been finished by an interrupted import and were reused")
    if report.repaired_texts:
        say(
            f"{report.repaired_texts:,} texts contained invalid UTF-8: each such byte is replaced by \N{REPLACEMENT CHARACTER}"
        )
    for damaged in report.damaged:
        say(damaged)
    if report.quarantined:
        reasons = ", ".join(f"{count:,} × {reason}" for reason, count in report.reasons.items())
        say(f"{report.quarantined:,} left out: {reasons}; see {report.folder}/quarantine.jsonl")


@dataclass(frozen=True)
class MixCommand:
    """Mix data sets by weights; no row is copied."""

    data: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DIR=WEIGHT ..")]
    """DIR=WEIGHT for each data set: an epoch of the mixture reads every row WEIGHT times (0.5: half of the rows). A DIR can
    be a mixture."""
    out: str
    """A new folder or URI, in which only a manifest is written."""
    name: str = ""
    """Name of the mixture; default: the folder's name."""

    def run(self) -> None:
        """Check the members, write the manifest, and report the content of an epoch."""
        from cornerstone.data.mixture import write_mixture
        from cornerstone.data.storage import absolute

        if not self.data:
            raise CornerstoneError("No data set is named: expected DIR=WEIGHT for each, as in data/cc3m=1 data/own=4.")
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
