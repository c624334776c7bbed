"""Numbers in running text: digits, words, scales, units, precision and stated ranges."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.text import fold

_UNDER_TWENTY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_ONES = {name: value for value, name in enumerate(_UNDER_TWENTY)}
_TENS = {
    name: 10 * value
    for value, name in enumerate(("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"), 2)
}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "dozen": 12.0}
_SHORT_SCALES = {"k": 1e3, "bn": 1e9, "mn": 1e6}
_WORD = "|".join(sorted([*_ONES, *_TENS], key=len, reverse=True))
_SCALE = "|".join(_SCALES)
_NUMBER = re.compile(
    rf"""
    (?P<sign>(?<![\w.)])[-\u2212]|\bminus\s+)?
    (?:
      (?<![\w.,])(?<!\d:)
      (?P<digits>
        \d{{1,3}}(?:[,\u00a0\u202f\ ]\d{{3}}(?!\d))+(?:\.\d+)?  # 1,234,567.8
        | \d+,\d{{1,2}}(?!\d)                                  # 3,14
        | \d+(?:\.\d+)?
      )
      (?:\s*(?P<scale>{_SCALE})\b|(?P<short>k|bn|mn)\b)?
      (?!\w|[.,:]\d)
      |
      \b(?P<words>(?:{_WORD}|a(?=\s+(?:{_SCALE})))(?:[\s-]+(?:and\s+)?(?:{_WORD}|{_SCALE}))*)\b
    )
    """,
    re.VERBOSE | re.IGNORECASE,
)
_RANGE = re.compile(
    r"\(\s*(?:acceptable|accepted|allowed)?\s*range\s*:?\s*(?:is\s+)?(?:anything\s+)?(?:between|from)?\s*"
    r"(?P<low>.+?)\s*(?:\band\b|\bto\b|[-\u2013\u2014])\s*(?P<high>[^)]+?)\s*(?:inclusive\s*)?\)",
    re.IGNORECASE,
)
_SPAN_BEFORE = re.compile(r"(?:\bbetween\s+[\w.,%$\s]{1,20}\band|\d\s*(?:to|[-\u2013]))\s*\Z", re.IGNORECASE)
_SPAN_AFTER = re.compile(r"\A\s*(?:\w+\s+)?(?:to|[-\u2013])\s*\d", re.IGNORECASE)

_ABOUT = {"about", "around", "approximately", "approx", "roughly", "over", "some", "nearly", "almost"}
_UNITS: dict[str, tuple[str, float]] = {}
for _dimension, _sizes in {
    "length": "mm 0.001 millimetre 0.001 millimeter 0.001 cm 0.01 centimetre 0.01 centimeter 0.01 m 1 metre 1 meter 1 "
    "km 1000 kilometre 1000 kilometer 1000 ft 0.3048 foot 0.3048 feet 0.3048 inch 0.0254 yard 0.9144 mi 1609.344 "
    "mile 1609.344",
    "mass": "mg 0.000001 g 0.001 gram 0.001 kg 1 kilo 1 kilogram 1 tonne 1000 ton 1000 lb 0.45359237 pound 0.45359237",
    "time": "second 1 minute 60 hour 3600 day 86400 week 604800",
}.items():
    _parts = _sizes.split()
    _UNITS |= {name: (_dimension, float(size)) for name, size in zip(_parts[::2], _parts[1::2], strict=True)}


@dataclass(frozen=True)
class Quantity:
    """A number found in a text.

    Args:
        value: the number itself.
        step: what one more in its last significant figure is worth; 0 for a number without trailing doubt.
        start, end: where it stands.
        unit: the known unit that follows it, or "".
        in_span: it is one end of "between 10 and 20" or "10-20".
    """

    value: float
    step: float
    start: int
    end: int
    unit: str = ""
    in_span: bool = False

    def agrees(self, gold: Quantity) -> bool:
        """Whether this number is the gold to the gold's last significant figure."""
        return abs(self._in_unit_of(gold) - gold.value) <= gold.step / 2 * (1 + 1e-9) + 1e-12 * abs(gold.value)

    def _in_unit_of(self, gold: Quantity) -> float:
        mine, its = _UNITS.get(self.unit), _UNITS.get(gold.unit)
        if not mine or not its or mine[0] != its[0]:
            return self.value
        return self.value * mine[1] / its[1]


def quantities(text: str) -> list[Quantity]:
    """All numbers of a text, in order."""
    return list(_quantities(text))


def _quantities(text: str) -> Iterator[Quantity]:
    for match in _NUMBER.finditer(text):
        number = _digits(match) if match["digits"] else _in_words(match["words"])
        if match["words"] and _is_pronoun(match, text):
            continue
        value, step = number
        sign = -1 if match["sign"] else 1
        in_span = bool(_SPAN_BEFORE.search(text[: match.start()]) or _SPAN_AFTER.match(text[match.end() :]))
        yield Quantity(sign * value, step, match.start(), match.end(), _unit_after(text, match.end()), in_span)


def _digits(match: re.Match[str]) -> tuple[float, float]:
    plain = re.sub(r"(?<=\d),(?=\d{1,2}\Z)", ".", match["digits"])  # a decimal comma
    plain = re.sub("[,\u00a0\u202f ]", "", plain)
    scale = _SCALES.get((match["scale"] or "").lower()) or _SHORT_SCALES.get((match["short"] or "").lower(), 1.0)
    decimals = len(plain.partition(".")[2])
    if decimals or scale != 1.0:
        zeros = 0 if decimals else len(plain) - len(plain.rstrip("0"))
        return float(plain) * scale, 10.0 ** (zeros - decimals) * scale
    return float(plain), _integer_step(plain)


def _integer_step(digits: str) -> float:
    """Zeros at the end of a large round number are rounding; a small number means what it says."""
    zeros = len(digits) - len(digits.rstrip("0"))
    return 10.0**zeros if len(digits) >= 5 and zeros >= 3 else 0.0


def _is_pronoun(match: re.Match[str], text: str) -> bool:
    """Whether "one" stands for a thing and not for a number: "one of them", "the black one"."""
    if match["words"].lower() != "one":
        return False
    after, before = text[match.end() :], text[: match.start()]
    stands_alone = re.match(r"\s+(?:of|can|could|has|should|day)\b|\s*[.,;?!]", after)
    return bool(stands_alone and not re.search(r"(?:\bis|:|\A)\s*\Z", before))


def _in_words(phrase: str) -> tuple[float, float]:
    total = group = 0.0
    for word in re.findall("[a-z]+", phrase.lower()):
        if word == "a":
            group = 1
        elif word in _ONES or word in _TENS:
            group += _ONES.get(word, _TENS.get(word, 0))
        elif word in ("hundred", "dozen"):
            group = (group or 1) * _SCALES[word]
        elif word in _SCALES:
            total, group = total + (group or 1) * _SCALES[word], 0.0
    return total + group, 0.0


def _unit_after(text: str, end: int) -> str:
    following = re.match(r"\s?(%|[^\W\d_]+(?![\w\u00b2\u00b3]))", text[end:])
    if not following:
        return ""
    word = fold(following[1])
    singular = word.removesuffix("s") if len(word) > 2 else word
    return "%" if word in ("%", "percent") else word if word in _UNITS else singular if singular in _UNITS else ""


@dataclass(frozen=True)
class GoldNumber:
    """A gold answer that is a number: with its precision, or with a stated range."""

    number: Quantity
    low: float | None = None
    high: float | None = None

    def accepts(self, found: Quantity) -> bool:
        """Whether a number in the answer is right."""
        if self.low is not None and self.high is not None:
            return self.low <= found._in_unit_of(self.number) <= self.high
        return found.agrees(self.number)


def gold_number(gold: str) -> GoldNumber | None:
    """The number that a gold answer consists of, or None if it is more than a number with a unit."""
    stated = _RANGE.search(gold)
    rest = (gold[: stated.start()] + gold[stated.end() :]) if stated else gold
    found = quantities(rest)
    if len(found) != 1:
        return None
    number = found[0]
    around = re.findall(r"[^\W\d_]+", rest[: number.start] + " " + rest[number.end :])
    if sum(len(word) > 1 and word[0].isupper() for word in around) or len(around) > 3:
        return None
    if re.search(r"[^\W\d_]\s*-?\Z", rest[: number.start]) and around and not _is_approximate(rest[: number.start]):
        return None  # "Apollo 11", "vitamin B12": a name with a number
    if not stated:
        return GoldNumber(number)
    ends = [quantities(stated[name]) for name in ("low", "high")]
    if not all(ends):
        return None
    low, high = ends[0][0].value, ends[1][0].value
    scale = re.search(rf"({_SCALE})", stated["high"], re.IGNORECASE)
    if scale and low < high / 100:  # "between 1.3 and 1.5 million"
        low *= _SCALES[scale[1].lower()]
    return GoldNumber(number, min(low, high), max(low, high))


def _is_approximate(before: str) -> bool:
    return set(re.findall(r"[^\W\d_]+", before.lower())) <= _ABOUT
