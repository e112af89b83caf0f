"""How the VQA evaluation normalises an answer: punctuation, number words, articles, contractions."""

from __future__ import annotations

import re
from functools import cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
"""As published, where `(?!<=` has no effect: every period goes but those before a digit."""
_NUMBER_WORDS = """
zero one two three four five six seven eight nine ten
"""
_NUMBERS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}}
_ARTICLES = ("a", "an", "the")
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's how'd
how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't
shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd they'd've they'll they're
they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's where've who'd who'd've
who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll
you're you've
"""
"""Words whose apostrophes answers leave out: any one of them is put back."""


def normalised(answer: str) -> str:
    """What is compared: lower case, without articles and most punctuation, numbers as digits, apostrophes put back."""
    return _words(without_punctuation(answer.replace("\n", " ").replace("\t", " ").strip()))


def without_punctuation(text: str) -> str:
    """A mark at the edge of a word goes, or any mark if a number has a comma; one inside a word becomes a space."""
    found, number = text, _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if at_edge or number else " ")
    return _PERIOD.sub("", found)


def _words(text: str) -> str:
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(_contractions().get(word, word) for word in words if word not in _ARTICLES)


@cache
def _contractions() -> dict[str, str]:
    """Each word by its spellings that lack one apostrophe."""
    return {
        word[:place] + word[place + 1 :]: word
        for word in _CONTRACTED.split()
        for place, letter in enumerate(word)
        if letter == "'"
    }
