"""`webdataset`: tars of samples (`tar_samples`). Tars are read as streams; nothing is extracted to disk.

Fields are the endings of the members (`txt`, `long.txt`) and the names inside the JSON member. A text that is taken as raw
caption and has several lines is several captions, as in retrieval sets (CLIP_benchmark's, the hub's
`clip-benchmark/wds_*`). Members `KEY.cls` beside a file `classnames.txt`, in the folder of the tars or above it, make a
classification set; `zeroshot_classification_templates.txt` has its prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from cornerstone.data.importers.core import ImportOptions, ImportPlan, Quarantined, Sample
from cornerstone.data.importers.fields import conditions, find, meets, names
from cornerstone.data.importers.files import Task, find_files, plan_files, read_files
from cornerstone.data.importers.tar_samples import IMAGES, Names, member_names, read_tar
from cornerstone.data.manifest import Kind
from cornerstone.data.storage import Location
from cornerstone.errors import CornerstoneError, did_you_mean

ENDINGS = (".tar", ".tar.gz", ".tgz")
CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
LABEL = "cls"
_LOOKED_AT = 256  # samples whose fields are compared with the options before the import starts
_MEMBERS = 2000  # members whose names are looked at
_MOST_ENDINGS = 8  # of several parts in one tar: more of them are parts of names


class WebDataset:
    """The format of this module. Without --raw and --long the raw caption is `txt`."""

    kind: Kind = "pairs"

    def __init__(self, src: Location, options: ImportOptions) -> None:
        if options.label is not None:
            raise CornerstoneError("--label needs all class names before the first row: import a list (pairs-jsonl).")
        if options.images is not None:
            raise CornerstoneError("--images has no effect on tars, which hold their images. Leave it out.")
        self.where = conditions(options.where)
        self.tars = find_files(src, ENDINGS, "tar")
        self.classes, self.prompts = _classes(self.tars[0].parent)
        self.options = options
        parts = (*options.raw, *options.long, *(field for field, _ in self.where))
        self.names = _names_of(self.tars, parts, options.image or "")
        if not (options.raw or options.long) and not (self.classes and not self._has("txt")):
            self.options = replace(options, raw=("txt",))

    def plan(self) -> ImportPlan:
        """One task per tar; with `limit_rows` a single task, which reads no more tars than it needs."""
        plan = plan_files(self.tars, self.options, "tars")
        self._check_fields([tar for task in plan.tasks for _, tar in task])
        return replace(plan, classes=self.classes, prompts=self.prompts)

    def read(self, task: Task) -> Iterator[Sample | Quarantined]:
        """The rows of some tars that meet the conditions, at most `limit_rows`, through the shuffle buffer."""
        return read_files(task, self._matching, self.options)

    def _matching(self, tar: Location) -> Iterator[Sample | Quarantined]:
        for record in read_tar(tar, self.names, self._is_complete):
            if isinstance(record, Quarantined) or meets(record.fields, self.where):
                yield self._read(record)

    def _read(self, record: Sample | Quarantined) -> Sample | Quarantined:
        """The captions of a text of several lines, and the number of the class."""
        if isinstance(record, Quarantined):
            return record
        fields = dict(record.fields)
        for field in self.options.raw:
            text = fields.get(field)
            if isinstance(text, str) and len(lines := [line for line in text.splitlines() if line.strip()]) > 1:
                fields[field] = lines
        if not self.classes or LABEL not in fields:
            return replace(record, fields=fields)
        given = str(fields.pop(LABEL)).strip()
        if not given.isdecimal() or int(given) >= len(self.classes):
            return Quarantined(record.key, f"no such class: .cls is {given[:20]!r}, there are {len(self.classes)}")
        return replace(record, fields=fields, label=int(given))

    def _wanted(self) -> tuple[str, ...]:
        return (*self.options.raw, *self.options.long, *(field for field, _ in self.where))

    def _is_complete(self, sample: Sample) -> bool:
        wanted = all(find(sample.fields, field) is not None for field in self._wanted())
        return wanted and (not self.classes or LABEL in sample.fields)

    def _has(self, ending: str) -> bool:
        return any(self.names.split(name)[1] == ending for name in member_names(self.tars[0], _LOOKED_AT))

    def _check_fields(self, tars: list[Location]) -> None:
        """Raise CornerstoneError for a field that none of the first samples has, before hours of work."""
        records = (record for tar in tars for record in read_tar(tar, self.names, self._is_complete))
        samples = list(islice((record.fields for record in records if isinstance(record, Sample)), _LOOKED_AT))
        known = sorted({name for sample in samples for name in names(sample)})
        for field in self._wanted() if samples else ():
            if all(find(sample, field) is None for sample in samples):
                raise CornerstoneError(
                    f"None of the first {len(samples)} samples of {tars[0]} has a field {field!r}"
                    f"{did_you_mean(field, known)}"
                )


def _classes(folder: Location) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class names and prompts beside the tars, or in the folder above them (which holds the splits)."""
    for place in (folder, folder.parent):
        if place.join(CLASS_NAMES).exists():
            templates = place.join(TEMPLATES)
            prompts = _lines(templates) if templates.exists() else ()
            return _lines(place.join(CLASS_NAMES)), tuple(prompt.replace("{c}", "{}") for prompt in prompts)
    return (), ()


def _lines(file: Location) -> tuple[str, ...]:
    text = file.read_bytes().decode("utf-8-sig", "replace")
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _names_of(tars: list[Location], parts: tuple[str, ...], image: str) -> Names:
    """How the names of these tars are to be split, by those of the first tar that can be read.

    Raises CornerstoneError if it is not clear, or if there are several images in a sample and none is chosen.
    """
    found = next((found for tar in tars[:8] if (found := member_names(tar, _MEMBERS))), [])
    names = Names(tuple(part.lower() for part in parts), image.lower())
    endings = Counter(names.split(name)[1] for name in found)
    endings.pop("", None)
    odd = [ending for ending in endings if "." in ending and ending not in names.parts and ending != names.image]
    if odd and _are_parts_of_names(odd, endings):
        names = replace(names, at_last_dot=True)
        endings = Counter(names.split(name)[1] for name in found)
        endings.pop("", None)
    images = [ending for ending in endings if ending in IMAGES]
    long_images = [ending for ending in endings if "." in ending and ending.rpartition(".")[2] in IMAGES]
    if names.image:
        if found and names.image not in endings:
            raise CornerstoneError(f"No member ends with .{names.image}{did_you_mean(names.image, endings)}")
        return names
    if images or not long_images:
        return names
    if len(long_images) > 1:
        raise CornerstoneError(
            f"The samples of {tars[0]} have several images ({', '.join('.' + ending for ending in sorted(long_images))}): "
            f"choose one with --image {sorted(long_images)[0]}."
        )
    return replace(names, image=long_images[0])


def _are_parts_of_names(odd: list[str], endings: Counter[str]) -> bool:
    """Whether endings like `05.10.jpg` are the rest of a name with dots, and not kinds of members like `input.jpg`."""
    numeric = [ending for ending in odd if any(part.isdecimal() for part in ending.split(".")[:-1])]
    if numeric and len(numeric) == len(odd):
        return True
    repeated = [ending for ending in odd if endings[ending] > 1]
    if len(odd) <= _MOST_ENDINGS and (len(repeated) == len(odd) or sum(endings.values()) <= 2 * len(endings)):
        return False
    if not repeated:
        return True
    raise CornerstoneError(
        f"It is not clear where the keys end: .{odd[0]} can be a kind of member or the rest of a name with dots. Rename "
        f"the members so that the key has no dot, or name the ending in --raw, --long or --image."
    )
