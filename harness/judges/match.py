"""A judge made of rules: no model, no calls, the same verdict every time, and nothing in the answer can talk to it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Any, ClassVar, Literal

from harness.judges.claims import Claim, asides, claims, corrected_part, final_part
from harness.judges.golds import Gold, among, content_words, gold_of
from harness.judges.names import split_words
from harness.judges.phrases import (
    BEGINS_WITH_OR,
    CONNECTS,
    DENIES_THE_LAST,
    DOUBT,
    LETTERED,
    NAMES_AFTER,
    OPTIONS,
    OR_AFTER,
    OR_BEFORE,
    POINTS,
    REALLY,
    TURN,
    WAVERS,
)
from harness.judges.prompts import rubric_named
from harness.judges.trust import calibration_of
from harness.judges.usage import Usage
from harness.scoring import Grading, Verdict

Label = Literal["CORRECT", "INCORRECT", "NOT_ATTEMPTED"]
_RULES = 2
"""Bump by hand whenever a verdict changes."""

_NOT_A_RIVAL = frozenset(
    {"so", "more", "less", "fewer", "about", "thereabouts", "not", "later", "earlier", "simply", "both", "as", "rather"}
)
_NAMES_A_THING = re.compile(r"\A\W*(?:[A-Z]\w+(?:\s\w+)?\W*\Z|[A-Z]\w+ (?:is|was) the\b)")
"""A thing and no more, or "Australia is the capital": a claim, even if all its words stood in the question."""
_LONE_LETTER = re.compile(r"\A\W*[A-D]\W*\Z")
"""The letter of a grade or of an option, which is no answer by itself."""
_FILLERS = """
difficult hard tricky good great interesting important complex topic information help question fact thing things
something someone way time glad happy assist assistant sure let step steps start begin look check search find moment
second minute later next thank thanks welcome hello hi hey conversation discuss talk subject user chat give tell
explain provide share ask true right accepted valid perfect exactly absolutely indeed agreed try want need here
hm hmm uh um er ah oh eh huh oops yeah yep nope alright lol haha grader judge final result conclusion
"""
_FILLER = frozenset(_FILLERS.split())


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchJudge:
    """Grades the SimpleQA labels by rules; it cannot grade quality.

    CORRECT needs the gold answer or an alias as whole words, not denied and without a rival; numbers agree to the
    gold's precision or lie in its stated range, dates agree in any usual format, long names forgive a small typo. An
    answer without it is NOT_ATTEMPTED if it declines, only repeats the question, or holds nothing of the kind that is
    asked for.
    Limits: no knowledge of the world and few words of other languages, so a paraphrase or translation is INCORRECT.
    """

    rubrics: ClassVar[frozenset[str]] = frozenset({"simpleqa", "simpleqa_verified"})
    usage: Usage = field(default_factory=Usage, init=False)

    @property
    def identity(self) -> str:
        """Kind and version of the rules."""
        return f"match v{_RULES}"

    @property
    def calibration(self) -> dict[str, Any]:
        """How well this version agrees with readers; see `harness.judges.trust`."""
        return calibration_of(self.identity)

    def preflight(self) -> None:
        """Rules are always at hand."""

    def grade(self, gradings: Sequence[Grading]) -> list[Verdict]:
        """One verdict per grading, in order.

        Raises:
            ValueError: the rubric is none that rules can grade.
        """
        return [self._verdict(grading) for grading in gradings]

    def _verdict(self, grading: Grading) -> Verdict:
        if grading.rubric not in self.rubrics:
            raise ValueError(
                f"judge=match grades only {' and '.join(sorted(self.rubrics))}, not {grading.rubric!r}: "
                "set judge=local or judge=openai"
            )
        value, why = Reading(grading).label()
        about = {"judge": self.identity, "prompt_hash": rubric_named(grading.rubric).hash, "rule": why}
        return Verdict(value, raw=why, details=about)


@dataclass(frozen=True)
class Mention:
    """One place where the gold answer stands."""

    claim: Claim
    start: int
    end: int

    following: Claim | None

    @property
    def denied(self) -> bool:
        """It stands there as what the answer is not."""
        if self.claim.denies(self.start, self.end):
            return True
        taken_back = self.following and DENIES_THE_LAST.match(self.following.text)
        return bool(taken_back and (self.claim.asks or self.reported))

    @property
    def reported(self) -> bool:
        """It stands there as what others say."""
        return self.claim.reports(self.start)

    @property
    def rest(self) -> str:
        """What the same sentence turns to after it: "but …"; "" if it does not turn."""
        after = self.claim.text[self.end :]
        turn = TURN.search(after)
        return after[turn.end() :] if turn else ""


@dataclass(frozen=True)
class Reading:
    """One grading, read by the rules."""

    grading: Grading

    @cached_property
    def gold(self) -> Gold:
        """What to look for."""
        return gold_of(self.grading.question, self.grading.gold, self.grading.aliases)

    @cached_property
    def said(self) -> list[Claim]:
        """What the answer claims; where that is nothing, what it says in passing while it talks about its grading."""
        found = claims(self.grading.answer, self.gold.find)
        says = any(claim.abstains or self._novel(claim.text) for claim in found)
        return found if says else [*found, *asides(self.grading.answer, self.gold.find)]

    @cached_property
    def _options(self) -> dict[str, str]:
        """The options that the answer lists, by letter."""
        _, *found = LETTERED.split("\n".join(claim.text for claim in self.said))
        return dict(zip(found[::2], (text.partition("\n")[0] for text in found[1::2]), strict=True))

    def label(self) -> tuple[Label, str]:
        """The label, and the rule that gave it."""
        if not self.said:
            return "NOT_ATTEMPTED", "nothing is said"
        whole = "\n".join(claim.text for claim in self.said)
        for part, name in ((corrected_part(whole), "corrected"), (final_part(whole), "final")):
            settled = self._settled(part, name) if part else None
            if settled:
                return settled
        mentions = self._mentions(self.said)
        return self._with_gold(mentions) if mentions else self._without_gold()

    def _mentions(self, said: Sequence[Claim]) -> list[Mention]:
        pairs = zip_longest(said, said[1:])
        return [Mention(claim, s, e, following) for claim, following in pairs for s, e in self.gold.find(claim.text)]

    def _settled(self, part: str, name: str) -> tuple[Label, str] | None:
        """The label if the answer itself says which of its parts is its answer."""
        chosen = bool(_LONE_LETTER.match(part)) and not self.gold.find(part)
        part = self._options.get(part.strip(" .)(\n"), "") if chosen else part
        said = claims(part)
        mentions = [mention for mention in self._mentions(said) if not mention.denied]
        if mentions:
            return self._with_gold(mentions)
        if chosen and said:
            return "INCORRECT", f"the {name} answer is another option"
        first = said[0] if said else None
        if first is None or first.abstains or not self._novel(first.text) or not self.gold.has_kind(first.text):
            return None
        return "INCORRECT", f"the {name} answer is another"

    def _with_gold(self, mentions: Sequence[Mention]) -> tuple[Label, str]:
        asserted = [mention for mention in mentions if not mention.denied and not mention.reported]
        if not asserted:
            denied = all(mention.denied for mention in mentions)
            turns = any(self._novel(mention.rest) for mention in mentions)
            if denied or turns or self._commits_to_another([mention.claim for mention in mentions]):
                return "INCORRECT", "the gold answer is denied" if denied else "the gold answer is only reported"
            return "CORRECT", "the gold answer is reported without a rival"
        if self._is_taken_back(asserted[0]):
            return "INCORRECT", "the gold answer is taken back"
        if self._is_one_of_several(asserted):
            return self._several()
        if self.grading.rubric == "simpleqa" and self._contradicted([mention.claim for mention in asserted]):
            return "INCORRECT", "another sentence gives another answer"
        return "CORRECT", "the gold answer stands"

    def _several(self) -> tuple[Label, str]:
        return "NOT_ATTEMPTED" if self.grading.rubric == "simpleqa_verified" else "INCORRECT", "several candidates"

    def _is_one_of_several(self, asserted: Sequence[Mention]) -> bool:
        if len(self._options) >= 3 and not final_part(" ".join(claim.text for claim in self.said)):
            return True
        listed = any(NAMES_AFTER.match(mention.claim.text[mention.end :]) for mention in asserted)
        if listed and self.gold.is_name and not self.gold.parts:
            return True
        return all(self._has_alternative(mention) for mention in asserted)

    def _is_taken_back(self, mention: Mention) -> bool:
        """Whether the sentence goes on with another: "silicon, but it's actually silicon carbide"."""
        return bool(REALLY.search(mention.claim.text[mention.end :])) and self._novel(mention.rest)

    def _has_alternative(self, mention: Mention) -> bool:
        text = mention.claim.text
        mine = text[mention.start : mention.end]
        before, after = text[: mention.start], text[mention.end :]
        for match in (OR_AFTER.match(after), OR_BEFORE.search(before)):
            if match and self._is_rival(match, mine, text):
                return True
        if len(OPTIONS.findall(text)) >= 2 or self._goes_on_with_or(mention):
            return True
        items = [item for item in re.split(r",|\band\b", text) if item.strip()]
        names = all(item.strip()[:1].isupper() and len(item.split()) <= 3 for item in items)
        return len(items) >= 3 and names and not self.gold.parts and not mention.claim.states

    def _goes_on_with_or(self, mention: Mention) -> bool:
        following = mention.following.text if mention.following else ""
        return bool(BEGINS_WITH_OR.match(following)) and self._novel(following)

    def _is_rival(self, match: re.Match[str], mine: str, text: str) -> bool:
        other = match["other"]
        listed = match.groupdict().get("list") or ""
        if other.lower() in _NOT_A_RIVAL or self.gold.find(other) or not self.gold.same_kind(other, mine):
            return False
        # "sodium chloride, or table salt": one thing by two names, unless the sentence wavers
        return not match["comma"] or bool(listed.strip()) or bool(WAVERS.search(text)) or other[:1].isupper()

    def _contradicted(self, holding: Sequence[Claim]) -> bool:
        others = [claim for claim in self.said if claim not in holding]
        return any(self._answers(claim) and self.gold.rivals(claim.text) for claim in others)

    def _answers(self, claim: Claim) -> bool:
        """Whether a sentence repeats the question's words, as a full answer would, and neither declines nor denies."""
        asked = self.gold.asked
        if not asked or claim.abstains or claim.asks or claim.negates:
            return False
        return self.gold.is_repeated_by(claim.text) and not claim.reports(len(claim.text))

    def _novel(self, text: str) -> bool:
        """Whether a text says something that the question did not say and that is not mere filling."""
        return any(not among(word, self.gold.asked) and word.text not in _FILLER for word in content_words(text))

    def _without_gold(self) -> tuple[Label, str]:
        whole = " ".join(claim.text for claim in self.said)
        declines = any(claim.abstains for claim in self.said)
        if declines and not self._commits_to_another([]):
            return "NOT_ATTEMPTED", "declines"
        if not declines and self.gold.find_part(whole):
            return "INCORRECT", "a part is missing"
        if all(claim.asks and not claim.guesses for claim in self.said):
            return "NOT_ATTEMPTED", "only asks"
        if not self._novel(whole):
            means = any(word.text not in _FILLER for word in content_words(whole))
            if means and _NAMES_A_THING.match(whole) and not self.said[0].asks:
                return "INCORRECT", "a word of the question is given as the answer"
            return "NOT_ATTEMPTED", "only repeats the question"
        if not any(self.gold.has_kind(claim.text) for claim in self.said if not self._breaks_off(claim)):
            return "NOT_ATTEMPTED", "nothing of the kind asked for"
        return "INCORRECT", "the gold answer is not there"

    def _breaks_off(self, claim: Claim) -> bool:
        """Whether the answer was cut off where this began to say something more: "However, the exact title"."""
        last = len(self.said) > 1 and claim is self.said[-1]
        return last and bool(CONNECTS.match(claim.text)) and not claim.states and claim.text[-1].isalpha()

    def _commits_to_another(self, besides: Sequence[Claim]) -> bool:
        return any(self._commits(claim) for claim in self.said if claim not in besides)

    def _commits(self, claim: Claim) -> bool:
        """Whether a sentence puts forward an answer, with whatever doubt."""
        text = claim.text
        if Claim(DOUBT.sub(" ", text)).abstains:
            text = claim.after_turn
        bare = Claim(DOUBT.sub(" ", text))
        if not bare.text.strip() or bare.abstains or bare.negates or self.gold.find_part(text):
            return False
        if not self._novel(bare.text) or not self.gold.has_kind(bare.text):
            return False
        if claim.guesses or POINTS.search(bare.text) or len(split_words(bare.text)) <= 3:
            return True
        return bare.states and (self.gold.rivals(bare.text) or self.gold.is_repeated_by(bare.text))
