"""Words of a text, normalised the same way wherever texts are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

_ARTICLES = frozenset({"a", "an", "the"})
# Letters that Unicode does not decompose into a base letter and a mark.
_UNDECOMPOSED = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i"})
_MARKS = re.compile("[\u0300-\u036f]")
_APOSTROPHES = re.compile("['’‘ʼ`´]")
_THOUSANDS = re.compile(r"(?<=\d)[,\u00a0\u202f](?=\d{3}(?!\d))")
_INITIALS = re.compile(r"\b(?:[^\W\d_]\.){2,}")
_NUMBER = re.compile(r"(?<![^\W_])(?P<sign>(?<![^\s(\[])[-\u2212\u2013](?=\.?\d))?(?P<digits>\d*\.?\d+(?:\.\d+)*)")


def fold(text: str) -> str:
    """Lower case without accents: ``Łódź`` becomes ``lodz``. Marks of scripts that need them to be read stay."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return unicodedata.normalize("NFC", _MARKS.sub("", decomposed)).translate(_UNDECOMPOSED)


@lru_cache(maxsize=65536)
def _is_word_character(character: str) -> bool:
    return unicodedata.category(character)[0] in "LNM"


def words(text: str) -> list[str]:
    """Folded words in order, articles included; ``1,234.5`` and ``-5`` stay whole, ``U.S.`` becomes ``us``."""
    plain = _THOUSANDS.sub("", _APOSTROPHES.sub("", fold(text)))
    plain = _INITIALS.sub(lambda match: match[0].replace(".", "") + " ", plain)
    tokens: list[str] = []
    end = 0
    for match in _NUMBER.finditer(plain):
        if match.end() < len(plain) and _is_word_character(plain[match.end()]):
            continue  # "1st", "2nd", "3d": a word that begins with a digit
        tokens += _split(plain[end : match.start()])
        sign = "-" if match["sign"] else ""
        digits = match["digits"]
        tokens.append(f"{sign}0{digits}" if digits.startswith(".") else f"{sign}{digits}")
        end = match.end()
    return tokens + _split(plain[end:])


def _split(plain: str) -> list[str]:
    return "".join(letter if _is_word_character(letter) else " " for letter in plain).split()


def normalise(text: str) -> list[str]:
    """Words of a text as SQuAD compares them: lower case, no accents, punctuation or articles, numbers whole.

    A text of articles alone keeps them, so that an answer such as "A" can be found.
    """
    all_words = words(text)
    return [word for word in all_words if word not in _ARTICLES] or all_words


def overlap(gold: str, aliases: Iterable[str], completion: str) -> float:
    """Share of the gold's distinct words that the completion contains, the best over gold and aliases.

    Args:
        gold: the reference answer.
        aliases: other right answers.
        completion: the text that is scored.

    Returns:
        A share from 0 to 1; 0 if neither gold nor aliases hold a word.
    """
    of_completion = frozenset(normalise(completion))
    answers = (frozenset(normalise(answer)) for answer in (gold, *aliases))
    return max((len(answer & of_completion) / len(answer) for answer in answers if answer), default=0.0)
