"""Trains a WordPiece vocabulary on a data set's own texts: BERT's rules, lower case, a few hundred words.

The merges are computed here because the trainer of `tokenizers` breaks ties by the order of a hash table, which differs
between processes: the vocabulary enters the recipe's hash, so it must be deterministic.
"""

from __future__ import annotations

import json
import string
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from cornerstone.data.shards import DataSet, Reader
from cornerstone.errors import CornerstoneError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
_ALPHABET = string.ascii_lowercase + string.digits + string.punctuation
_INSIDE = "##"


def train_wordpiece(texts: Iterable[str], vocab_size: int = 1024) -> str:
    """The text of a `tokenizer.json` with at most `vocab_size` tokens; equal texts give equal files.

    Every character of the texts and of printable ASCII is a token, at the start of a word and inside one, so that no word
    of the texts becomes [UNK]; the other tokens are merges of the most frequent pairs. Meant for the few words of scenes:
    the time grows with the number of different words. Raises CornerstoneError if the characters exceed `vocab_size`.
    """
    words = _words(texts)
    characters = sorted({c for word in words for c in word} | set(_ALPHABET))
    pieces = [*SPECIAL, *characters, *(_INSIDE + c for c in characters)]
    if len(pieces) > vocab_size:
        raise CornerstoneError(
            f"A vocabulary of {vocab_size} has no room for the texts' {len(characters)} characters: "
            f"give it {len(pieces)} pieces or more."
        )
    pieces += sorted(_merged(words, vocab_size - len(pieces)))
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = _bert(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL))
    return json.dumps(json.loads(tokenizer.to_str()), indent=1, ensure_ascii=False)


def texts_of(data: DataSet) -> Iterator[str]:
    """All captions of a data set or all texts of its documents, then its prompts for every class."""
    column, wanted = (
        ("segments", "segments.list.element.text") if data.manifest.kind == "documents" else ("captions",) * 2
    )
    reader = Reader(data, columns=[wanted], keep_groups=1)  # without the images of documents
    for group in range(len(data.manifest.row_groups)):
        for parts in reader.group(group)[column].to_pylist():
            yield from (part["text"] for part in parts or () if part["text"] is not None)
    for prompt in data.manifest.prompts:
        yield from (prompt.format(name) for name in data.manifest.classes)


def _bert(model: models.WordPiece) -> Tokenizer:
    """A tokenizer with BERT's rules for case, accents and word boundaries."""
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _words(texts: Iterable[str]) -> Counter[str]:
    """Word frequencies after BERT's normalisation; a punctuation mark is a word."""
    rules = _bert(models.WordPiece())
    spaced = Counter(word for text in texts for word in text.split())
    words: Counter[str] = Counter()
    for word, count in spaced.items():
        for part, _ in rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(word)):
            words[part] += count
    return words


def _merged(words: Counter[str], room: int) -> set[str]:
    """Up to `room` merges, each of the pair that is then the most frequent; ties are broken alphabetically."""
    spelled = {word: [word[0], *(_INSIDE + c for c in word[1:])] for word in words}
    pairs: Counter[tuple[str, str]] = Counter()
    for word, count in words.items():
        for pair in pairwise(spelled[word]):
            pairs[pair] += count
    pieces: set[str] = set()
    while len(pieces) < room:
        best = min((pair for pair, count in pairs.items() if count), key=lambda p: (-pairs[p], p), default=None)
        if best is None:
            break
        joined = best[0] + best[1].removeprefix(_INSIDE)
        pieces.add(joined)
        for word, old in spelled.items():
            if best in pairwise(old):
                spelled[word] = new = _join(old, best, joined)
                for pair in pairwise(old):
                    pairs[pair] -= words[word]
                for pair in pairwise(new):
                    pairs[pair] += words[word]
    return pieces


def _join(pieces: list[str], best: tuple[str, str], joined: str) -> list[str]:
    new: list[str] = []
    for piece in pieces:
        if new and (new[-1], piece) == best:
            new[-1] = joined
        else:
            new.append(piece)
    return new
