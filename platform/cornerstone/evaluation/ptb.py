"""The tokens on which captions are scored: the Penn Treebank's, in lower case and without punctuation, as COCO's evaluation.

With Java they come from the Stanford tokenizer that `pycocoevalcap` brings; without it from the rules here, which give the
same tokens for captions of everyday English (`tests/evaluation/test_captions.py` compares the two).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from cornerstone.errors import CornerstoneError

JAR = "stanford-corenlp-3.4.1.jar"
PUNCTUATION = frozenset(
    ['"', "''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
"""What is removed. The brackets' names are upper-case, and the tokens lower-case: `-lrb-` stays, as in published scores."""
Tokenize = Callable[[Sequence[str]], list[str]]
"""Each text as tokens separated by one blank."""

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELT = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "—": "--", "–": "--", "…": "...", "\u00a0": " "})
_ABBREVIATIONS = frozenset(
    "mr|mrs|ms|dr|st|mt|jr|sr|vs|etc|inc|co|corp|ft|no|prof|gen|capt|rev|ca".split("|")  # noqa: SIM905
)
_TOKEN = re.compile(
    r"""
    https?://\S+
    | (?:[a-z]\.){2,}                        # u.s.
    | [a-z]+(?=n't\b) | n't\b                # do n't
    | '(?:s|re|ve|ll|d|m|em|til|tis|twas)\b
    | \#[a-z]\w* | [!?]{2,}
    | [a-z]+(?='s-) | (?<='s)-(?=[a-z])      # bird 's eye
    | [0-9]+(?:[.,:/][0-9]+)*(?:[a-z]+[0-9]*)?(?:[-/][a-z0-9]+)*
    | [^\W_]+(?:[-_'&/.@+](?=[^\W_])[^\W_]+)*
    | \.{3} | --+ | [^\w\s]
    """,
    re.VERBOSE,
)
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "wanna": "wan na",
    "gimme": "gim me",
    "lemme": "lem me",
}
_CLITIC = re.compile(r"^(.+?)('(?:s|re|ve|ll|d|m))$")


def tokenizer(say: Callable[[str], None] = print) -> Tokenize:
    """The Stanford tokenizer if there is Java, otherwise the rules of this file, which is said."""
    if shutil.which("java"):
        return with_java
    say(
        "There is no Java: captions are tokenized by rules in Python, which give the Stanford tokenizer's tokens for everyday "
        "captions. For scores to publish install Java (a `java` on the PATH)."
    )
    return in_python


def with_java(texts: Sequence[str]) -> list[str]:
    """Tokens by Stanford's PTBTokenizer. CornerstoneError if Java fails, or gives another number of lines."""
    if not texts:
        return []
    lines = "\n".join(" ".join(text.split()) for text in texts) + "\n"
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(_jar()), "edu.stanford.nlp.process.PTBTokenizer"]
    command += ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    done = subprocess.run(command, input=lines.encode(), capture_output=True, check=False)
    found = done.stdout.decode(errors="replace").split("\n")[: len(texts)]
    if done.returncode or len(found) != len(texts):
        raise CornerstoneError(
            f"Java's tokenizer gave {len(found)} lines for {len(texts)} captions (status {done.returncode}): "
            f"{done.stderr.decode(errors='replace')[-300:]} Take Java off the PATH to use the rules in Python."
        )
    return [_kept(line.split()) for line in found]


def in_python(texts: Sequence[str]) -> list[str]:
    """Tokens by the rules of this file."""
    return [_kept(_tokens(text)) for text in texts]


def _tokens(text: str) -> list[str]:
    text = text.translate(_SPELT).lower()
    found: list[str] = []
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == "." and found and _abbreviated(found[-1], text, match.start()):
            found[-1] += "."
            continue
        if clitic := _CLITIC.match(token):
            found += clitic.groups()
            continue
        found += _SPLIT.get(token, _BRACKETS.get(token, token)).split()
    return found


def _abbreviated(before: str, text: str, place: int) -> bool:
    """Whether a full stop belongs to the word before it."""
    known = before in _ABBREVIATIONS or (len(before) == 1 and before.isalpha())
    return known and text[:place].endswith(before) and bool(text[place + 1 :].strip())


def _kept(tokens: Sequence[str]) -> str:
    return " ".join(token for token in tokens if token not in PUNCTUATION)


def _jar() -> Path:
    spec = find_spec("pycocoevalcap")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = next((path for place in places if (path := Path(place) / "tokenizer" / JAR).exists()), None)
    if found is None:
        raise CornerstoneError(f"pycocoevalcap, which brings {JAR}, is not installed here: pip install pycocoevalcap.")
    return found
