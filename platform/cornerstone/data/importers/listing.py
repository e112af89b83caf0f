"""Formats that are a list of texts beside a folder of images: COCO, Karpathy, Flickr30k, DCI, IIW and others.

A format is one function, which reads its list in the driver and returns the name and the fields of each image. A list fits
into memory (the largest, ShareGPT4V's, has 1.2 million entries); each task is sent only its own entries. Rows come in a
seeded permutation of the list. An image that is listed twice gives two rows, the second with the key `name#1`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pyarrow import fs

from cornerstone.data import draws
from cornerstone.data.importers.core import MAX_BYTES, ImportOptions, ImportPlan, Quarantined, Sample
from cornerstone.data.importers.debris import is_debris
from cornerstone.data.importers.fields import conditions, find, meets, names, spelled
from cornerstone.data.importers.folder import ImageFolder
from cornerstone.data.manifest import Kind
from cornerstone.data.output import stamps
from cornerstone.data.records import Record
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
IMAGE_FIELDS = ("image", "file_name", "filename")
"""Fields whose absence means that an entry has no image, on purpose or not."""
Entry = tuple[str, dict[str, Any]]
"""The name of an image in its folder, and its fields."""


@dataclass(frozen=True)
class Listing:
    """The entries of a list, and the folder of its images unless --images names another."""

    images: Location
    entries: list[Entry]
    set_aside: tuple[Quarantined, ...] = ()
    """Entries that name no image, as the text-only ones of mixtures for instruction tuning, or that lack their text."""


class Listed:
    """Any format of this module. `read_list` is its function; `raw`, `long` and `label` are the fields taken by default."""

    kind: Kind = "pairs"

    def __init__(
        self,
        src: Location,
        options: ImportOptions,
        read_list: Callable[[Location], Listing],
        raw: tuple[str, ...] = (),
        long: tuple[str, ...] = (),
        label: str | None = None,
    ) -> None:
        if not (options.raw or options.long or options.label):
            options = replace(options, raw=raw, long=long, label=label)
        self.src, self.options, self.read_list = src, options, read_list
        self.where = conditions(options.where)
        self.images: Location | None = Location.of(options.images) if options.images else None

    def plan(self) -> ImportPlan:
        """Read the list, keep the entries that meet the conditions, shuffle them and split them into tasks."""
        listing = self.read_list(self.src)
        listing = replace(listing, entries=listing.entries[: self.options.first])
        if self.options.class_names:
            _rename(listing.entries, str(self.options.label), Location.of(self.options.class_names))
        self.images = self.images or listing.images
        self._check(listing.entries)
        if not self.images.exists():
            raise CornerstoneError(f"No image folder at {self.images}. Name the folder of the listed images: --images.")
        entries = _with_keys([entry for entry in listing.entries if meets(entry[1], self.where)])
        options = self.options
        order = draws.permutation(len(entries), options.seed, "import-order")[: options.limit_rows].tolist()
        step = options.rows_per_shard
        labels = {
            spelled(found) for _, _, row in entries if options.label and (found := find(row, options.label)) is not None
        }
        return ImportPlan(
            tasks=[[entries[i] for i in order[start : start + step]] for start in range(0, len(order), step)],
            order={"rows": "permuted", "seed": options.seed},
            source=[hashlib.sha256(json.dumps(entries, default=str).encode()).hexdigest(), stamps([self.images])],
            classes=tuple(sorted(labels)),
            quarantined=listing.set_aside,
        )

    def read(self, task: Sequence[tuple[str, str, dict[str, Any]]]) -> Iterator[Sample | Record | Quarantined]:
        """The rows of some entries, given as (key, image name, fields)."""
        assert self.images is not None, "set by plan()"
        folder = ImageFolder(self.images, self.options.follow_links)
        for key, name, row in task:
            try:
                yield Sample(key, folder.read(name), row)
            except (OSError, ValueError) as reason:
                yield Quarantined(key, str(reason))

    def _check(self, entries: list[Entry]) -> None:
        """Raise CornerstoneError for a field or a value that no entry has; the message suggests existing ones."""
        options = self.options
        if not entries:
            raise CornerstoneError(f"{self.src} lists no image. Name another list.")
        wanted = [*options.texts, *([options.label] if options.label else []), *(f for f, _ in self.where)]
        for field in wanted:
            if all(find(row, field) is None for _, row in entries):
                known = sorted({name for _, row in entries[:1000] for name in names(row)})
                raise CornerstoneError(f"No entry of {self.src} has a field {field!r}{did_you_mean(field, known)}")
        for field, value in self.where:
            if not any(meets(row, [(field, value)]) for _, row in entries):
                values = sorted({spelled(find(row, field)) for _, row in entries})[:50]
                raise CornerstoneError(f"No entry of {self.src} has {field}={value!r}{did_you_mean(value, values)}")
        if self.where and not any(meets(row, self.where) for _, row in entries):
            raise CornerstoneError(f"No entry of {self.src} meets all of --where {' '.join(options.where)}.")


def _rename(entries: list[Entry], label: str, names: Location) -> None:
    """Replace the values of the label field by class names."""
    text = _text(names)
    found = (
        _parsed(names, text)
        if text.lstrip().startswith("{")
        else dict(_named(line) for line in _lines(text) if line.strip())
    )
    known: dict[str, str] = {}
    for given, name in found.items():
        if (other := known.setdefault(str(name), given)) != given:
            raise CornerstoneError(
                f"{names} gives {other!r} and {given!r} the same name {name!r}: give each class a different one."
            )
    for _, row in entries:
        given = spelled(find(row, label))
        if given not in found:
            raise CornerstoneError(f"{names} has no name for the class {given!r}{did_you_mean(given, map(str, found))}")
        row[label] = str(found[given])


def _named(line: str) -> tuple[str, str]:
    """Split `n01440764 tench, Tinca tinca` into the class and its names."""
    first, _, rest = line.strip().partition(" ")
    return first, rest.strip()


def _with_keys(entries: list[Entry]) -> list[tuple[str, str, dict[str, Any]]]:
    seen: Counter[str] = Counter()
    keyed = []
    for name, row in entries:
        keyed.append((f"{name}#{seen[name]}" if seen[name] else name, name, row))
        seen[name] += 1
    return keyed


def coco(src: Location) -> Listing:
    """COCO captions: `images[{id, file_name}]`, `annotations[{image_id, caption}]`; all captions of an image form one row."""
    found = _json(src, {"images": list, "annotations": list})
    captions: dict[Any, list[Any]] = {}
    annotations, aside = _having(src, "annotations", found["annotations"], "image_id")
    images, without = _having(src, "images", found["images"], "file_name", "id")
    for annotation in annotations:
        captions.setdefault(annotation.get("image_id"), []).append(annotation.get("caption"))
    entries = [
        (str(image["file_name"]), {"id": image["id"], "captions": captions.get(image["id"], [])}) for image in images
    ]
    return Listing(_parent(src), entries, (*aside, *without))


def karpathy(src: Location) -> Listing:
    """Karpathy's splits: `images[{filepath?, filename, split, sentences[{raw}]}]`."""
    found = _json(src, {"images": list})
    entries = []
    images, aside = _having(src, "images", found["images"], "filename")
    for image in images:
        name = f"{image['filepath']}/{image['filename']}" if image.get("filepath") else str(image["filename"])
        captions = [sentence.get("raw") for sentence in image.get("sentences", []) if isinstance(sentence, dict)]
        entries.append((name, {"split": image.get("split"), "captions": captions}))
    return Listing(_parent(src), entries, aside)


def flickr30k(src: Location) -> Listing:
    """Flickr30k: lines `name.jpg#0⇥caption`, or the CSV with `raw` (a JSON list of captions), `split`, `filename`."""
    text = _text(src)
    if src.name.endswith(".csv"):
        csv.field_size_limit(MAX_BYTES)  # do not fail on long texts
        try:
            rows = list(csv.DictReader(io.StringIO(text.replace("\r\n", "\n").replace("\r", " "))))
        except csv.Error as error:
            raise CornerstoneError(f"{src}: not CSV ({error}).") from error
        rows, aside = _having(src, "rows", rows, "filename", "raw")
        entries = [
            (row["filename"], {"split": row.get("split"), "captions": _captions(src, row["raw"])}) for row in rows
        ]
        return Listing(_parent(src), entries, aside)
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(_lines(text), 1):
        name, tab, caption = line.partition("\t")
        if line.strip() and not tab:
            raise CornerstoneError(f"{src}, line {number}: expected `name.jpg#0⇥caption`, found {line[:60]!r}.")
        if tab:
            captions.setdefault(name.partition("#")[0], []).append(caption)
    return Listing(_parent(src), [(name, {"captions": texts}) for name, texts in captions.items()])


def dci(src: Location) -> Listing:
    """DCI: `splits.json`, `annotations/NAME.json` (image, short_caption, extra_caption), `photos/`.

    The long caption, field `caption`, is the short caption, a newline and the extra caption, as in LoTLIP's evaluation.
    """
    root = src if src.join("splits.json").exists() else src.join("densely_captioned_images")
    splits = _json(root.join("splits.json"), {})
    entries, aside = [], list[Quarantined]()
    for split, listed in splits.items():
        for name in listed:
            place = root.join("annotations", name if str(name).endswith(".json") else f"{name}.json")
            row = _json(place, {})
            if not isinstance(row.get("image"), str):
                aside.append(Quarantined(place.name, "no image: the annotation names none"))
                continue
            short, extra = str(row.get("short_caption") or ""), str(row.get("extra_caption") or "")
            fields = {"split": split, "short_caption": short, "extra_caption": extra, "caption": f"{short}\n{extra}"}
            entries.append((row["image"], fields))
    if aside and not entries:
        raise CornerstoneError(f"{root}: no annotation names an image. Is it another format?")
    return Listing(root.join("photos"), entries, tuple(aside))


def iiw(src: Location) -> Listing:
    """IIW: JSON lines with the long caption in `IIW` and the image in `image/key` or `image`, with or without `.jpg`."""
    place = src if src.name.endswith(".jsonl") else src.join("data.jsonl")
    entries, aside = [], list[Quarantined]()
    for number, line in enumerate(_lines(_text(place)), 1):
        if not line.strip():
            continue
        row = _parsed(f"{place}, line {number}", line)
        name = row.get("image/key") or row.get("image") if isinstance(row, dict) else None
        if not isinstance(name, str):
            aside.append(
                Quarantined(f"{place.name}, line {number}", "no image: neither `image/key` nor `image` names one")
            )
            continue
        entries.append((name if name.lower().endswith(IMAGES) else f"{name}.jpg", row))
    if not entries:
        raise CornerstoneError(f"{place}: no line is an object with `image/key` or `image`. Is it another format?")
    return Listing(_parent(place), entries, tuple(aside))


def sharegpt4v(src: Location) -> Listing:
    """ShareGPT4V: a list of `{id, image, conversations[{from, value}]}`; the long caption, `caption`, is the second turn."""
    listed, aside = entries_of(src, "image", "conversations")
    entries = []
    for entry in listed:
        turns = entry["conversations"]
        text = turns[1].get("value") if len(turns) > 1 and isinstance(turns[1], dict) else None
        entries.append((str(entry["image"]), {"id": entry.get("id"), "caption": text}))
    return Listing(_parent(src), entries, aside)


def entries_of(src: Location, *wanted: str) -> tuple[list[dict[str, Any]], tuple[Quarantined, ...]]:
    """The entries of a JSON list that have the `wanted` fields, and the others, set aside."""
    found = _json(src, None)
    if not isinstance(found, list):
        raise CornerstoneError(
            f"{src}: expected a list of entries with {' and '.join(f'`{name}`' for name in wanted)}."
        )
    return _having(src, "entries", found, *wanted)


def urban1k(src: Location) -> Listing:
    """Urban1k: `image/N.jpg` and the first line of `caption/N.txt`."""
    numbers = sorted(
        name.removesuffix(".txt")
        for name in src.join("caption").list()
        if name.endswith(".txt") and not is_debris(name)
    )
    texts = [_text(src.join("caption", f"{number}.txt")).partition("\n")[0] for number in numbers]
    entries = [(f"{number}.jpg", {"caption": text}) for number, text in zip(numbers, texts, strict=True)]
    return Listing(src.join("image"), entries)


def imagefolder(src: Location) -> Listing:
    """ImageNet's layout: `class/name.JPEG`, or `split/class/name.JPEG`; the name of the folder is the class."""
    files = sorted(path for path in _walk(src) if path.lower().endswith(IMAGES) and not is_debris(path))
    entries: list[Entry] = []
    for name in files:
        *folders, _ = name.split("/")
        if not 1 <= len(folders) <= 2:
            raise CornerstoneError(f"{src}: expected [split/]class/name.JPEG, found {name}.")
        entries.append((name, {"class": folders[-1], **({"split": folders[0]} if len(folders) == 2 else {})}))
    return Listing(src, entries)


def _walk(src: Location) -> Iterator[str]:
    """Names of all files below, relative to it. Links to folders are entered once; `ImageFolder` decides what is read."""
    filesystem, root = src.resolve()
    if not isinstance(filesystem, fs.LocalFileSystem):
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=True, allow_not_found=True))
        yield from (info.path[len(root.rstrip("/")) + 1 :] for info in found if info.type == fs.FileType.File)
        return
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in files)


def _parent(src: Location) -> Location:
    return src.parent


def _text(place: Location) -> str:
    if not place.exists():
        raise CornerstoneError(f"No file at {place}: check the path.")
    try:
        return place.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        raise CornerstoneError(f"Cannot read {place}: {error}") from error


def _lines(text: str) -> list[str]:
    """Split at newlines only, unlike `str.splitlines`: texts may contain the other line separators of Unicode."""
    return [line.removesuffix("\r") for line in text.split("\n")]


def _parsed(place: object, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CornerstoneError(f"{place}: not JSON ({error}).") from error


def _json(place: Location, parts: dict[str, type] | None) -> Any:
    """Read a JSON file. With `parts` (name and type), raise CornerstoneError unless it is an object that has them."""
    found = _parsed(place, _text(place))
    if parts is None:
        return found
    if not isinstance(found, dict):
        raise CornerstoneError(f"{place}: expected an object, found {type(found).__name__}.")
    for name, kind in parts.items():
        if not isinstance(found.get(name), kind):
            keys = ", ".join(sorted(map(str, found))[:8])
            raise CornerstoneError(f"{place}: expected {' and '.join(parts)}, found {keys}. Is it another format?")
    return found


def _having(
    src: Location, what: str, rows: list[Any], *wanted: str
) -> tuple[list[dict[str, Any]], tuple[Quarantined, ...]]:
    """The rows that have all `wanted` fields, and the others, set aside.

    Raises CornerstoneError if no row has one of the fields: it is another format then.
    """
    for name in wanted:
        if rows and not any(isinstance(row, dict) and row.get(name) is not None for row in rows):
            raise CornerstoneError(f"{src}: no entry of {what} has {name!r}. Is it another format?")
    kept, aside = [], []
    for place, row in enumerate(rows):
        missing = [name for name in wanted if not isinstance(row, dict) or row.get(name) in (None, "")]
        if missing:
            kind = "no image" if missing[0] in IMAGE_FIELDS else f"no {missing[0]}"
            aside.append(Quarantined(f"{what} {place}", f"{kind}: the entry has no {missing[0]!r}"))
        else:
            kept.append(row)
    return kept, tuple(aside)


def _captions(src: Location, listed: str) -> list[str]:
    captions = _parsed(f"{src}, column raw", listed)
    return captions if isinstance(captions, list) else [str(captions)]
