"""What an answer claims: its sentences, freed from markup and from talk about grading; negation, doubt, refusal."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from harness.judges.phrases import (
    ABSTENTION,
    CLAUSE,
    CORRECTION,
    DENIED_AFTER,
    EMPTY,
    FINAL,
    GRADING,
    GUESS,
    HARMLESS_NEGATION,
    LABEL,
    NEGATION,
    ORDER,
    OWN_ANSWER,
    REPORTED,
    RESTATED_QUESTION,
    STAMP,
    STATES,
    TURN,
    with_day_numbers,
)

_SPECIAL = re.compile(r"<\|[^|<>]{0,40}\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<eos>|<bos>")
_TAG = re.compile(r"<!--.*?(?:-->|\Z)|<(?P<closes>/?)(?P<name>[A-Za-z][\w-]*)[^<>]{0,60}>")
_INLINE_TAGS = frozenset(
    {"a", "b", "big", "code", "em", "font", "i", "mark", "s", "small", "span", "strong", "sub", "sup", "u"}
)
_MARK_TAGS = frozenset({"label", "points", "rating", "result", "score", "status"})
_FOLLOW_ON = re.compile(r"(?:\A|(?<=\s))(?:Q|Question|User|Human)\s*\d*\s*:", re.IGNORECASE)
_HEADING = re.compile(
    r"^\s*#*\s*(?:introduction|background|conclusions?|summary|overview|answer|references?|explanation|question|response"
    r"|note|steps?|examples?|details?|context|discussion|solution)\s*:?\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_MARKUP = re.compile(r"\\[a-zA-Z]+|[*_`#{}$\"\u201c\u201d~]+|^\s*[-+>]\s+|^[-|: ]{3,}$", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*\d{1,2}[.)]\s+", re.MULTILINE)
_CONDITION = re.compile(r"\W*(?:if|please|when|since|because|as|whenever|unless)\b", re.IGNORECASE)
_IF = re.compile(r"\W*(?:if|when|whenever|unless)\b", re.IGNORECASE)
_SPACED_OUT = re.compile(r"(?<![^\s])(?:[A-Za-z][ .-]){3,}[A-Za-z](?![^\s.,!?])")
_ABBREVIATION = re.compile(r"(?:\b(?:Dr|Mr|Mrs|Ms|St|Jr|Sr|Prof|vs|No|etc|approx|ca|c|e\.g|i\.e)|\b[A-Z]|\.[A-Za-z])\Z")
_GRADE = re.compile(r"\b[A-D]\.\Z")
_END = re.compile(r"(?<=[.!?\u3002])[\"')\]]*\s+|\n+|[\[\]]|(?<=[!?])(?=\w)")


def cleaned(answer: str) -> str:
    """The answer without markup, chat tokens, and questions and answers that a model added of its own."""
    text = _TAG.sub(_as_text, _SPECIAL.sub("\n", unicodedata.normalize("NFC", answer)))
    starts = [match.start() for match in _FOLLOW_ON.finditer(text)]
    if starts and not text[: starts[0]].strip():
        starts = starts[1:]
    if starts:
        text = text[: starts[0]]
    if len(_NUMBERED.findall(text)) > 1:  # a lone "9." is more likely the answer than a list
        text = _NUMBERED.sub(" ", text)
    text = _MARKUP.sub(" ", _HEADING.sub(" ", text)).replace("|", ", ")
    text = _SPACED_OUT.sub(lambda match: re.sub("[^\\w]", "", match[0]), text)
    return with_day_numbers(re.sub(r"[ \t]+", " ", text)).strip()


def _as_text(tag: re.Match[str]) -> str:
    """What a tag says: nothing if it is inline, else that a part ends, and what comes next if that is about grading."""
    heading = re.sub("[_-]", " ", tag["name"] or "").lower()
    if not heading or heading in _INLINE_TAGS:
        return " "
    if tag["closes"] or tag[0].endswith("/>"):
        return "\n"
    return f"\n{heading}: " if GRADING.search(f"{heading}:") else "\ngrade: " if heading in _MARK_TAGS else "\n"


def sentences(text: str) -> list[str]:
    """The sentences of a text; initials and usual abbreviations do not end one, a grade such as "A." does."""
    found: list[str] = []
    held = ""
    for piece in _END.split(text):
        held = f"{held} {piece}".strip() if held else piece.strip()
        shortened = held.endswith(".") and _ABBREVIATION.search(held[:-1]) and len(held) > 3
        if held and (not shortened or (_GRADE.search(held) and GRADING.search(held))):
            found.append(held)
            held = ""
    return found + ([held] if held else [])


def without_grading_talk(sentence: str, matters: Callable[[str], object] = lambda text: False) -> str:
    """The part of a sentence before it begins to speak about grading, or to give orders; "" if it begins so.

    Args:
        sentence: what was said.
        matters: whether words that run into such talk without a break must be kept.
    """
    talk = GRADING.search(sentence)
    if not talk:
        return sentence
    cuts = [match.end() for match in CLAUSE.finditer(sentence[: talk.start()])]
    before = sentence[: talk.start()]
    kept = before if matters(before) else sentence[: cuts[-1]] if cuts else ""
    return "" if _CONDITION.match(kept) else kept.strip(" ,;:(-")


@dataclass(frozen=True)
class Claim:
    """One sentence of an answer."""

    text: str

    @property
    def abstains(self) -> bool:
        """It declines, does not know, or asks back."""
        return bool(ABSTENTION.search(self.text) or EMPTY.match(self.text))

    @property
    def guesses(self) -> bool:
        """It puts something forward with doubt."""
        return bool(GUESS.search(self.text))

    @property
    def states(self) -> bool:
        """It says of something that it is so."""
        return bool(STATES.search(self.text))

    @property
    def negates(self) -> bool:
        """It says of something that it is not so."""
        return bool(NEGATION.search(HARMLESS_NEGATION.sub(" ", self.text)))

    @property
    def asks(self) -> bool:
        """It is a question."""
        return self.text.rstrip(" \"')").endswith("?")

    @property
    def after_turn(self) -> str:
        """What follows the last "but" or the like; "" if there is none."""
        turns = list(TURN.finditer(self.text.rstrip(" .;")))
        return self.text[turns[-1].end() :].strip() if turns else ""

    def clause_before(self, start: int) -> str:
        """The words of the same clause before a place."""
        before = self.text[:start]
        cuts = [match.end() for match in CLAUSE.finditer(before)]
        return before[cuts[-1] :] if cuts else before

    def denies(self, start: int, end: int) -> bool:
        """Whether what stands there is denied: "not Paris", "Paris is not"."""
        before = HARMLESS_NEGATION.sub(" ", self.clause_before(start))
        return bool(NEGATION.search(before) or DENIED_AFTER.match(self.text[end:]))

    def reports(self, start: int) -> bool:
        """Whether what stands there is only what others say, or what was thought at first."""
        stops = [match.end() for match in re.finditer(r"[;.]|\bbut\b", self.text[:start])]
        return bool(REPORTED.search(self.text[stops[-1] if stops else 0 : start]))


def claims(answer: str, matters: Callable[[str], object] = lambda text: False) -> list[Claim]:
    """The claims of an answer, in order; ``matters`` as for `without_grading_talk`."""
    parts = (without_grading_talk(sentence, matters) for sentence in _spoken(answer))
    return [Claim(part) for part in parts if re.search(r"\w", part)]


def asides(answer: str, matters: Callable[[str], object]) -> list[Claim]:
    """What stands between talk about grading, for an answer that says nothing outside of it.

    What the talk calls the answer that is handed in goes before all else.

    Args:
        answer: the whole answer.
        matters: whether words hold what is looked for; others are left out.
    """
    spoken = [sentence for sentence in _spoken(answer) if not _IF.match(sentence)]
    own = [without_grading_talk(part, matters) for sentence in spoken for part in OWN_ANSWER.split(sentence)[1:]]
    if any(re.search(r"\w", part) for part in own):
        return [Claim(part) for part in own if re.search(r"\w", part)]
    pieces = (piece for sentence in spoken for part in CLAUSE.split(sentence) for piece in LABEL.split(part))
    kept = (piece.strip() for piece in pieces if not GRADING.search(piece) and not _IF.match(piece))
    return [Claim(piece) for piece in kept if matters(piece)]


def _spoken(answer: str) -> list[str]:
    """The sentences of an answer but for orders to the reader."""
    bare = (_without_stamps(sentence) for sentence in sentences(cleaned(answer)))
    every = (RESTATED_QUESTION.sub("It is", sentence) for sentence in bare)
    return [sentence for sentence in every if not ORDER.search(sentence)]


def _without_stamps(sentence: str) -> str:
    while stamp := STAMP.match(sentence):
        sentence = sentence[stamp.end() :]
    return sentence


def final_part(text: str) -> str | None:
    """What follows the last "the answer is" or "final answer:", to the end; None if nothing of the kind is said."""
    marks = list(FINAL.finditer(text))
    return text[marks[-1].end() :] if marks else None


def corrected_part(text: str) -> str | None:
    """What follows the last "no, wait" or the like; None if nothing is taken back."""
    marks = list(CORRECTION.finditer(text))
    return text[marks[-1].end() :] if marks else None
