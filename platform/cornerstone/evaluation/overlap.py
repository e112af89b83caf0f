"""Which images of evaluation sets a model has seen in training, and which two sets share: numbers on them say little.

Images are compared by the name of their file and, where there is not too much of it, by their bytes. A name that is only a
number (`000000042`, as downloads count) says nothing about another data set: it counts if the bytes are equal. `KNOWN` has what
is published about the papers' own sets and cannot be seen in the rows.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cornerstone.data.manifest import Manifest
from cornerstone.data.mixture import Mixture
from cornerstone.data.shards import DataSet, Reader
from cornerstone.errors import CornerstoneError
from cornerstone.evaluation.tasks import EvaluationSet

MOST_BYTES = 256 << 20
"""Of shards whose images are compared by their bytes; of larger data the names alone are."""
MOST_ROWS = 20_000_000
"""Of training data whose names are compared: 20 million take about half a minute from a local disk."""
Hashes = npt.NDArray[np.uint64]
_ENDING = re.compile(r"\.[A-Za-z0-9]{2,5}$")
_TWICE = re.compile(r"#\d+$")
_CAPTIONERS = re.compile(
    r"(short|long)?(IB|SV|LLA)(_?captions?)?$|instructblip|llava|sharegpt4?v|share4v", re.IGNORECASE
)
"""Sources of long captions by the captioners of LoTLIP's data."""


@dataclass(frozen=True)
class Images:
    """What identifies the images of a data set, in the order of its rows."""

    names: Hashes
    """Of names that are no plain numbers; 0 for the others."""
    bytes: Hashes | None
    """Of the encoded images; None if there are too many of them."""

    @staticmethod
    def of(sets: Sequence[DataSet], limit: int | None = None) -> Images:
        """Of some data sets, one after another, up to `limit` rows."""
        size = sum(shard.bytes for data in sets for shard in data.manifest.shards)
        columns = ["key", "image"] if size <= MOST_BYTES else ["key"]
        tables = list(_columns(sets, columns, limit))
        names = np.concatenate([_hashed(map(_name, t["key"].to_pylist())) for t in tables])
        if len(columns) == 1:
            return Images(names, None)
        return Images(names, np.concatenate([_hashed(t["image"].to_pylist()) for t in tables]))

    def found_in(self, other: Images) -> npt.NDArray[np.bool_]:
        """Which rows the other has too."""
        found: npt.NDArray[np.bool_] = (self.names != 0) & np.isin(self.names, other.names)
        if self.bytes is not None and other.bytes is not None:
            found |= (self.bytes != 0) & np.isin(self.bytes, other.bytes)
        return found


@dataclass(frozen=True)
class Seen:
    """Training data, as far as it is known."""

    sets: tuple[DataSet, ...]
    limit: int | None = None
    """Only the first rows are trained on."""

    @property
    def captioners(self) -> tuple[str, ...]:
        """Sources of long captions that are captioners of LoTLIP's data."""
        tables = [Reader(data, ["captions"]).group(0) for data in self.sets]
        captions = (c for table in tables for row in table["captions"].to_pylist() for c in row or [])
        sources = {c["source"] for c in captions if c["role"] == "long"}
        return tuple(sorted(source for source in sources if _CAPTIONERS.search(source)))


def overlap_warnings(
    sets: Sequence[EvaluationSet], seen: Seen | None, known_hash: str = "", name: str = ""
) -> list[str]:
    """One sentence for each evaluation set of pairs that overlaps the training data, and for each two sets that share images.

    Args:
        seen: The training data; None if only their hash, `known_hash`, is known, or nothing (a released model).
        name: A released model's name, for what is published about it.
    """
    by_folder: dict[str, EvaluationSet] = {}
    for one in sets:
        if one.task.reads == "pairs":
            by_folder.setdefault(one.folder, one)
    judged = list(by_folder.values())
    data = {one.folder: DataSet.open(one.folder, "pairs") for one in judged}
    images = {folder: Images.of([opened]) for folder, opened in data.items()}
    said = _of_training(judged, images, seen, known_hash)
    for rule in KNOWN:
        said += [text for one in judged if (text := rule(one, data[one.folder].manifest, seen, name))]
    for place, one in enumerate(judged):
        for other in judged[place + 1 :]:
            shared = int(images[one.folder].found_in(images[other.folder]).sum())
            if shared and one.content_hash != other.content_hash:
                said.append(
                    f"Overlap: {shared:,} of {one.rows:,} images of {one.name} are also in {other.name}: the two results are "
                    f"not independent. Say so beside their average, or leave the rows out of one of them."
                )
    return said


def _of_training(
    judged: Sequence[EvaluationSet], images: dict[str, Images], seen: Seen | None, known_hash: str
) -> list[str]:
    if seen is None:
        same = [one for one in judged if known_hash and one.content_hash == known_hash]
        return [_warning(one, one.rows, "it is the training data") for one in same]
    rows = min(sum(map(len, seen.sets)), seen.limit or MOST_ROWS + 1)
    if rows > MOST_ROWS:
        return [
            f"Overlap: {rows:,} training rows are too many to compare with the evaluation sets by name: not checked."
        ]
    trained, said = Images.of(seen.sets, seen.limit), []
    for one in judged:
        found = int(images[one.folder].found_in(trained).sum())
        how = "by name or content" if trained.bytes is not None and images[one.folder].bytes is not None else "by name"
        if found:
            said.append(_warning(one, found, how))
    return said


def _warning(judged: EvaluationSet, images: int, how: str) -> str:
    return (
        f"Overlap: {images:,} of {judged.rows:,} images of {judged.name} are in the training data ({how}): its numbers do not "
        f"show what the model does with new images. Evaluate on another set, or train without these rows."
    )


def training_data(folder: str, limit: int | None = None) -> Seen | None:
    """The training data of a run that was saved, if they are still where they were; None for documents and if they are gone."""
    try:
        return Seen(Mixture.open(folder, "pairs").sets, limit) if folder else None
    except (CornerstoneError, OSError):
        return None


def _long_clip(judged: EvaluationSet, manifest: Manifest, seen: Seen | None, name: str) -> str:
    """Long-CLIP's authors trained on the entries of ShareGPT4V's list behind the first 1,000."""
    beyond = judged.rows - 1_000
    if beyond <= 0 or not re.search(r"long.?clip", name, re.IGNORECASE) or not _is_sharegpt4v(judged, manifest):
        return ""
    return _warning(judged, beyond, "Long-CLIP was trained on all entries of its list but the first 1,000").replace(
        "Evaluate on another set", "Import --first 1000 of the list (ShareGPT4V-1k)"
    )


def _captioners_saw_coco(judged: EvaluationSet, manifest: Manifest, seen: Seen | None, name: str) -> str:
    """InstructBLIP, LLaVA and ShareGPT4V were themselves trained on images of COCO."""
    is_coco = manifest.source.get("format") in ("coco", "karpathy") or re.search("coco", judged.name, re.IGNORECASE)
    if not is_coco or seen is None or not (by := seen.captioners):
        return ""
    return (
        f"Overlap: {judged.name} has images of COCO ({judged.rows:,}), on which the captioners of the training data "
        f"({', '.join(by)}) were trained, how many is not known. Say so beside its numbers, and claim nothing by it alone."
    )


def _written_by_a_captioner(judged: EvaluationSet, manifest: Manifest, seen: Seen | None, name: str) -> str:
    """ShareGPT4V's evaluation texts are by a captioner that wrote training texts."""
    by = [one for one in (seen.captioners if seen else ()) if re.search(r"SV|sharegpt4?v|share4v", one)]
    if not by or not _is_sharegpt4v(judged, manifest):
        return ""
    return (
        f"Overlap: the {judged.rows:,} texts of {judged.name} are written by ShareGPT4V, as training texts are "
        f"({', '.join(by)}): a model learns its manner. Compare on texts by humans too (DCI, IIW)."
    )


KNOWN: tuple[Callable[[EvaluationSet, Manifest, Seen | None, str], str], ...] = (
    _long_clip,
    _captioners_saw_coco,
    _written_by_a_captioner,
)
"""What is published of the papers' sets: each gives a sentence, or "" if it does not apply."""


def _is_sharegpt4v(judged: EvaluationSet, manifest: Manifest) -> bool:
    named = re.search(r"share(gpt)?4v|^sv.?\d", judged.name, re.IGNORECASE)
    return manifest.source.get("format") == "sharegpt4v" or named is not None


def _columns(sets: Sequence[DataSet], columns: list[str], limit: int | None) -> Iterator[pa.Table]:
    """The first columns of the rows, a row group at a time."""
    left = sum(map(len, sets)) if limit is None else limit
    for data in sets:
        reader = Reader(data, columns, keep_groups=1)
        for group in range(len(data.manifest.row_groups)):
            if left <= 0:
                return
            table = reader.group(group).slice(0, left)
            left -= table.num_rows
            yield table


def _name(key: str) -> bytes:
    """The file's name without its folder and its ending; b"" for a plain number and for a name that is not one file's."""
    name = _ENDING.sub("", _TWICE.sub("", os.path.basename(key)))
    return b"" if name.isdecimal() else name.encode()


def _hashed(values: Iterator[bytes] | list[bytes | None]) -> Hashes:
    """64 bits of each; 0 for nothing."""
    digests = (hashlib.blake2b(value, digest_size=8).digest() if value else b"\0" * 8 for value in values)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
