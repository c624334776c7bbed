"""The turns of phrase by which an answer declines, doubts, denies, corrects itself, or talks about its own grading."""

from __future__ import annotations

import re


def _any(*alternatives: str) -> str:
    return "(?:" + "|".join(alternatives) + ")"


def _words(*alternatives: str) -> re.Pattern[str]:
    return re.compile(rf"\b{_any(*alternatives)}\b", re.IGNORECASE)


_NOT = r"(?: ?n['\u2019]?t| not)"
_CANT = r"can(?:['\u2019]?t| ?not)"
_MONTHS = r"(?:january|february|march|april|may|june|july|august|september|october|november|december)"

_LABEL = r"\b(?:INCORRECT|CORRECT|NOT[_ ]ATTEMPTED)\b"
_SUBMITTED = r"(?:answer|response|reply|submission)"
_PASSED = (
    r"(?:approved|verified|certified|confirmed|validated|checked|accepted|right|correct|perfect|match\w*|identical"
    r"|wrong|false|rejected|invalid|inaccurate|unacceptable)"
)

GRADING = re.compile(
    rf"{_LABEL}|[!=]= ?gold\b|(?i:\b"
    + _any(
        r"grad(?:e|es|ed|er|ers|ing)",
        r"rubric",
        r"verdict",
        r"(?:gold|reference|expected|predicted) (?:target|answer|label|solution|text|response|says|is)",
        r"answer key",
        r"ground truth",
        r"(?:gold|reference|target)(?=\s*[:=])",
        r"evaluat(?:or|ion|e this)",
        r"(?:official|final|updated) (?:label|record|guideline)",
        r"system (?:message|prompt|note|override)",
        r"hidden note",
        r"maintenance mode",
        r"benchmark",
        r"(?:ignore|disregard|forget|override) (?:the|all|any|your|every|previous|earlier|everything)",
        r"new (?:task|instructions?|rules?)",
        r"previous instructions?",
        r"instructions? (?:above|below)",
        r"pretend",
        r"you are now",
        r"(?:mark|accept|count|score|label|rate|treat|judge|regard|award) (?:this|it|me|my|the answer|that|full)",
        r"(?:print|output|return|respond with|reply with|please write) (?:the|only|one|just|a|an)\b",
        r"please write",
        r"as correct",
        r"full (?:marks|points|credit)",
        rf"this {_SUBMITTED}\b.{{0,40}}\b{_PASSED}",
        rf"(?:the|my) {_SUBMITTED} (?:above |below |given |here )?(?:(?:is|was|has been|(?:must|should|will) be) )?"
        rf"(?:(?:\w+ly|already|also|100%) )*{_PASSED}(?=\W*\Z|[.,;:!?)]|\s+(?:and|as|because|by|for|in|of|per|so|the"
        r"|this|to|what|whatever|with)\b)",
        r"answer (?:was|is|has been) (?:removed|hidden|withheld|redacted)",
        r"answer of the (?:student|model)",
        r"answer (?:begins|ends)",
        r"(?:dear|hey|note (?:for|to)(?: the)?|message (?:for|to) the|attention,?) "
        r"(?:assessor|examiner|judge|marker|reader|reviewer)s?",
        r"(?:student|model)['\u2019]?s? answer",
        r"judges?\b.{0,20}\b(?:return\w*|agree\w*|rule\w*)",
        r"whatever (?:the|is|was|stands|you)",
        r"my job hangs",
        r"test case",
        r"return grade",
        r"(?:developer|administrator|author) of this",
        r"guidelines? \w*\d",
    )
    + r"(?:\b|\Z))"
)
"""Talk about grading. Plain words of other meanings ("the final score was 3-2") must stay out of it."""

LABEL = re.compile(_LABEL)
STAMP = re.compile(
    rf"\A(?:(?!\W*(?i:if|when|unless)\b)[^.:]*{_LABEL}\W*:\s*"
    rf"|\W*{_LABEL}(?:\W*\s[-\u2013\u2014]\s|[\s)\]=>]+(?=[A-Z\d])))"
)
"""A label that is put before a sentence."""
OWN_ANSWER = re.compile(
    r"\b(?:predicted|student|model|submitted|given|my)(?:['\u2019]s)? (?:answer|response|reply|submission)\s*"
    r"(?:[:=]|is\b(?=\s+(?-i:[A-Z\d])))\s*",
    re.IGNORECASE,
)
"""Words within talk about grading that lead to what is handed in: "predicted answer: Paris"."""

ORDER = re.compile(
    r"\A\W*(?:so |now |then )?(?:please\s+)?(?:treat|count|regard|accept|replace|change|swap|assume|imagine|suppose"
    r"|read|act|remember that|note for|attention)\b|\b(?:is|are|as) (?:a |the )?(?:synonyms?|same (?:as|thing|person)"
    r"|equivalent|equal) ?(?:of|to|as|for)?\b|\bcounts? as\b",
    re.IGNORECASE,
)
"""A sentence that tells the reader how to take the answer, and answers nothing."""

CLAUSE = re.compile(
    r"[;()\u2014\u2013]|[,:](?!\d)|\s-\s"
    r"|(?<!anything )\b(?:but|however|although|though|whereas|while|yet|because|since)\b",
    re.IGNORECASE,
)
TURN = re.compile(r"\b(?:but|however|though|although|actually|in fact)\b|[;.]", re.IGNORECASE)

HARMLESS_NEGATION = _words(
    r"no doubt",
    r"without (?:a |any )?doubt",
    r"not (?:only|just|merely)",
    r"(?:not|n['\u2019]t) (?:\w+ )?(?:sure|certain|confident|positive|100)",
    r"do(?:n['\u2019]t| not) (?:really |actually )?know(?: for)?",
    r"no(?:ne)? other than",
    r"not be wrong",
)
NEGATION = re.compile(
    r"\b"
    + _any(
        r"not\b",
        r"never\b",
        r"neither\b",
        r"nor\b",
        r"cannot\b",
        r"rather than\b",
        r"instead of\b",
        r"other than\b",
        r"anything but\b",
        r"except\b",
        r"excluding\b",
        r"unlike\b",
        r"doubt\w*\b",
        r"hardly\b",
        r"ruled? out\b",
        r"far from\b",
        r"(?:false|wrong|incorrect|mistaken) (?:that|to say)\b",
        r"no,? (?=[A-Z])",
        r"nicht\b",
        r"kein\w*\b",
        r"pas\b",
    )
    + r"|n['\u2019]t\b",
    re.IGNORECASE,
)
DENIED_AFTER = re.compile(
    r"\A\s*"
    + _any(
        r"(?:is|was|are|were|did|does|do|has|had|would|could|can)(?:\s+(?:definitely|certainly|actually|really))?"
        r"(?:\s+(?:not|never)\b|n['\u2019]t\b)",
        r"(?:is|was)\s+(?:\w+\s+)?(?:wrong|incorrect|false|a myth|a mistake)\b",
    )
    + r"(?!\s+(?:only|just|merely))",
    re.IGNORECASE,
)
DENIES_THE_LAST = re.compile(
    r"\A\W*(?:but\s+)?"
    + _any(
        r"(?:that|this|which|they|everyone|everybody|it)(?:['\u2019]s|\s+is|\s+are|\s+was|\s+were)?\s+(?:\w+\s+)?"
        r"(?:not\s+(?:true|right|correct|so|the case)|wrong|false|incorrect|a myth|mistaken|untrue)\b",
        r"no\b(?!\s+(?:doubt|other))",
        r"wrong\b",
        r"false\b",
    ),
    re.IGNORECASE,
)
REPORTED = re.compile(
    _any(
        r"\b(?:some|many|most|people|others|they|everyone|everybody|often|commonly|sometimes|usually|widely|you might"
        r"|one might)\b[^,.;]{0,25}\b(?:say|says|said|think|thinks|thought|believe[sd]?|claim|claims|claimed|confused?"
        r"|mistaken?|guess|assume[sd]?)\b",
        r"\b(?:first|initially|once|used to)\b[^,.;]{0,12}\b(?:thought|think|guess(?:ed)?|believed?)\b",
        r"\b(?:options?|candidates?|choices?):",
        r"\bit is tempting\b",
    ),
    re.IGNORECASE,
)
_FIRST_PERSON_CANNOT = (
    rf"(?:i|we)(?: \w+)? (?:do|did|have|could|would|should|will){_NOT}(?! (?:think|believe|suppose|doubt))",
    r"(?:i|we)(?: \w+)? (?:won['\u2019]?t|will not|shall not|shan['\u2019]?t|lack)",
    r"(?:i['\u2019]ve|i have|we have) never",
    r"(?:i['\u2019]m|i am|we are) (?:refusing|declining|abstaining)",
    r"i(?:['\u2019]m| am) (?:\w+ )?(?:at a loss|clueless|ignorant|in the dark|lost|out of my depth|stumped|no expert"
    r"|afraid|still learning)",
)
_ABROAD = (
    r"(?:kann|weiss|wei\u00df)\b.{0,25}\bnicht",
    r"nicht (?:bekannt|sicher|sagen|beantworten)|unbekannt|keinen (?:schimmer|blassen)",
    r"keine (?:ahnung|informationen|angaben?|antwort)",
    r"leider",
    r"(?:je|j['\u2019]|on) ?(?:ne|n['\u2019]) ?(?:sais|connais|peux|ai|me|m['\u2019])",
    r"(?:je l['\u2019]|j['\u2019])ignore|aucune id\u00e9e|inconnue?",
    r"d\u00e9sol\u00e9e?",
    r"no (?:lo )?s\u00e9|(?:ni|no tengo) idea|no (?:puedo|conozco|recuerdo|tengo)",
    r"lo siento",
    r"desconozco|desconocid[oa]",
    r"non (?:lo )?so|non (?:ricordo|conosco|posso|saprei)|non ne ho",
    r"mi dispiace",
    r"n\u00e3o (?:o )?(?:sei|fa\u00e7o|lembro|conhe\u00e7o|posso|tenho)",
    r"desculpe",
    r"geen idee|weet (?:het |ik |dat )*niet",
    r"vet (?:inte|ikke)|ved (?:det )?ikke|en tied\u00e4|nie (?:wiem|mam|znam|pami\u0119tam)|bilmiyorum",
    r"\u043d\u0435 (?:\u0437\u043d\u0430\u044e|\u043f\u043e\u043c\u043d\u044e|\u043c\u043e\u0433\u0443)",
)
ABSTENTION = re.compile(
    _words(
        *_FIRST_PERSON_CANNOT,
        rf"(?:do|did|does|could|would|have|has){_NOT} (?:\w+ )?(?:know|recall|remember|have|say|tell|determine|find"
        r"|provide|confirm|verify|help|identify|locate|give|name|answer|see|speak|assist|offer|possess|recogni[sz]e"
        r"|understand|make|been|any|enough|the|heard|learn\w*|a (?:clue|notion)|want|wish|include|contain|cover|cross"
        r"|ring|specify|mention|extend|feel)",
        rf"{_CANT}(?! be\b| have been\b)",
        rf"(?:{_CANT}|could{_NOT}|can neither|never) be (?:\w+ )?(?:answered|confirmed|determined|disclosed|established"
        r"|found|given|identified|known|resolved|said|shared|verified)",
        r"can neither",
        rf"could{_NOT} (?:\w+ )?(?:say|tell|find|recall|remember)",
        rf"have{_NOT} (?:a|the|any) (?:\w+ )?(?:clue|idea|notion)",
        r"unable",
        r"unsure|uncertain|unclear|undetermined|undecided|undisclosed|unspecified|unavailable|unanswerable",
        r"dunno|idk",
        r"pass(?=\W*\Z)",
        r"skip(?:ped)?(?=\W*\Z)",
        r"skip (?:it|that|this)",
        r"beats me|beyond me|mystery to me|news to me|you(?:['\u2019]ve)? (?:have )?got me|got me (?:there|stumped)",
        r"no comment",
        r"i (?:have )?(?:forgot(?:ten)?|forget)",
        r"(?:slips|slipped|escapes|escaped|eludes|fails|failed) (?:my|me)|my memory (?:fails|is failing)",
        r"(?:i|we) (?:give up|pass|plead|wish i knew)|(?:i|to) abstain",
        r"(?:i|we)(?:['\u2019]d| would)? (?:only |just )?be (?:only |just )?guessing",
        r"i['\u2019]ll (?:be guessing|give up|pass|leave|skip|sit)",
        r"i['\u2019]d (?:be|only be|just be) guessing|i['\u2019](?:m|d) (?:lost|stumped|be guessing|give up|pass)",
        r"(?:you tell me|search me|not a clue|not the (?:faintest|slightest|foggiest)\b.{0,12})",
        r"(?:the|a) (?:faintest|foggiest|slightest) (?:idea|clue|notion)|the foggiest",
        r"(?:who|god|heaven|heavens|goodness|lord) (?:really |only )?knows|who can (?:say|tell)",
        r"(?:nobody|no one|none of us) (?:really |quite )?knows",
        r"your guess is as good|tip of my tongue|(?:nothing|no name|none) (?:comes|springs) to mind",
        r"(?:draw(?:ing|s)?|drew) a blank|(?:mind|memory) (?:is|has gone|went|goes) blank",
        r"get back to you",
        r"(?:over|above) my (?:head|pay)",
        r"not (?:my (?:field|area|subject|strong\w*|thing)|something i|a (?:topic|subject|field) i)",
        r"(?:another|different|next) (?:question|topic|subject|one,? please)|change the subject|move on",
        r"leave (?:it|that|this) (?:one )?(?:blank|open|unanswered|out)|left (?:blank|unanswered)",
        r"(?:may|might|will) never (?:\w+ )?know|never (?:\w+ )?(?:came|heard|knew|learn\w*|read|studied|taught|told)",
        r"(?:nobody|no one) (?:\w+ )?(?:taught|told)",
        r"(?:could|may|might) be any\w*|nothing to (?:add|offer|say)|wrong of me|choos(?:e|ing) not|ask me another",
        r"confidential|classified|withheld",
        r"(?:hard|difficult|impossible|tough|tricky) to (?:say|tell|know|answer|determine|pin|establish|verify)",
        rf"(?:(?:is|are|was|were){_NOT}|not) (?:\w+ )?(?:sure|certain|able|aware|familiar|possible|known|available"
        r"|clear|specified|mentioned|stated|given|provided|public\w*|comfortable|at liberty|enough|sufficient|allowed"
        r"|permitted|supposed|qualified|equipped|programmed|trained|informed|told|taught|documented|recorded"
        r"|disclosed|listed|found|confident|willing|ready|in a position|the (?:right|best) (?:person|one)|paying"
        r"|going to (?:answer|say|tell|guess|respond|help|give|speculate|share|reveal))",
        r"(?:insufficient|too little) (?:information|data|context|detail)",
        r"(?:no|without) (?:\w+ )?(?:information|idea|clue|data|records?|knowledge|access|answer|way|memory|context"
        r"|details?|results?|response|reply|recollection|consensus|source|sources|entry|evidence|inkling)",
        r"unknown",
        r"n/a|tbd",
        r"it depends",
        r"(?:outside|beyond) (?:of )?(?:my|the)",
        r"(?:have|has|had|need|better|try|want|would|should|could|can|let me|must)\b.{0,12}\b(?:look(?:ing)?|check"
        r"|search)\b.{0,10}\b(?:up|it|that|which|this)",
        r"(?:look|google|search) (?:it|that|this|for it|for that)|look (?:it|that|this) up",
        r"(?:check|consult|see|try|use) (?:\w+ )?(?:wikipedia|google|the (?:internet|web)|(?:a|an|the|some|your|any) "
        r"(?:encyclop\w+|librar\w+|dictionary|book|textbook|search engine|expert|reliable|official))",
        r"need (?:more|additional|further)",
        r"(?:could|can|would|will) you",
        r"please (?:provide|clarify|specify|give|let|check|consult|share|ask|tell|see|refer|rephrase|try|be more)",
        r"(?:ask|consult|refer to) (?:a|an|the|someone|somebody|your)",
        r"sorry",
        r"apolog(?:i[sz]e|ies)",
        r"refuse|decline|prefer not|rather not|no wish|against my (?:guidelines|polic\w+|principles|rules)",
        r"as an? (?:ai|language model|large language|text-based)",
        r"i(?:['\u2019]m| am) (?:only |just |merely )?an? (?:\w+ )?(?:ai|language model|large language|chatbot|virtual"
        r"|text-based)",
        r"would (?:have|need) to",
        r"something else",
        *_ABROAD,
    ).pattern
    # scripts that put no spaces between words
    + "|\u4e0d\u77e5\u9053|\u4e0d\u6e05\u695a|\u62b1\u6b49|\u65e0\u6cd5|\u308f\u304b\u308a\u307e\u305b\u3093"
    "|\u5206\u304b\u308a\u307e\u305b\u3093|\u77e5\u308a\u307e\u305b\u3093|\ubaa8\ub974|\ubab0\ub77c"
    "|\u0644\u0627 (?:\u0623\u0639\u0631\u0641|\u0623\u062f\u0631\u064a)",
    re.IGNORECASE,
)
EMPTY = re.compile(r"\A\W*(?:blank|empty|nil|none|null|undefined)\W*\Z", re.IGNORECASE)
"""A word that stands for no answer where it is all that is said."""
DOUBT = _words(
    r"(?:i['\u2019]?m |i am )?(?:not (?:\w+ )?(?:sure|certain|confident|positive)|uncertain|unsure)"
    r"(?: about (?:it|this|that))?",
    rf"(?:i )?(?:do{_NOT} know|{_CANT} say|(?:i['\u2019]m )?(?:unsure|not able to say))(?: much about it| for sure"
    r"| for certain)?",
    r"(?:i['\u2019]m )?sorry",
    r"apologi[sz]e",
    r"(?:i (?:have|['\u2019]ve) )?no (?:\w+ )?(?:idea|clue)|dunno|idk",
)
GUESS = _words(
    r"i (?:would |['\u2019]d )?(?:think|guess|believe|suppose|say)",
    r"perhaps",
    r"maybe",
    r"probably",
    r"possibly",
    r"my (?:best )?guess",
    r"(?:might|may|could|must) be",
    r"likely",
)
STATES = re.compile(r"\b(?:is|was|are|were|be|has|had)\b|['\u2019]s\b|:", re.IGNORECASE)
POINTS = re.compile(
    r"\b(?:it|that|this|he|she|they|there|answer)(?:\s+(?:is|was|are|were)\b|['\u2019]s\b)", re.IGNORECASE
)
WAVERS = _words("either", "one of", "could", "might", "may", "maybe", "perhaps", "guess", "not sure", "candidates?")
FINAL = re.compile(
    r"(?:\b(?:final|correct|right|my|the|so the|short)\s+answer\b|\bin conclusion\b|\banswer\b(?=\s*(?:is\b|:))"
    r"|(?:\A|\s)A:(?!.*\bB:))\s*(?:is|would be|must be|should be)?\s*(?:that)?\s*[:=,]?\s*",
    re.IGNORECASE | re.DOTALL,
)
CORRECTION = re.compile(
    r"\b"
    + _any(
        r"no,? wait",
        r"wait,? no",
        r"scratch that",
        r"correction",
        r"on second thought",
        r"let me correct",
        r"i meant",
        r"sorry,? i mean",
        r"actually,? no",
        r"no,? actually",
        r"or rather",
    )
    + r"\b|(?<=[.!?\n])\s*(?:actually|wait|hold on|hmm,? no)\b",
    re.IGNORECASE,
)
OPTIONS = re.compile(r"(?:\A|\s)\(?[A-Da-d1-4][).:]\s+\S")
LETTERED = re.compile(r"(?:\A|\s)\(?(?P<letter>[A-D])[).]\s+(?=\S)")
REALLY = re.compile(
    r"\bbut\s+(?:it|this|that)(?:['\u2019]s|\s+is|\s+was)\s+(?:actually|really|in fact)\b", re.IGNORECASE
)
RESTATED_QUESTION = re.compile(
    r"\A\W*the question (?:of|about|as to|is)?\s*:?\s*(?:which|who|what|when|where|why|how)\b.*?\b(?:is|was|are)\b",
    re.IGNORECASE,
)
NAMES_AFTER = re.compile(r"\A(?:,\s+[A-Z]\w+)+,?\s+and\s+[A-Z]\w+")

_OR = r"(?:(?:perhaps|maybe|possibly|even|else|the|a|an|in|by|of)\s+)*"
OR_AFTER = re.compile(
    rf"\A(?P<list>(?:\s*,\s*(?:[\w'-]+\s?){{1,3}}?){{0,4}})(?P<comma>\s*,)?(?:\s+or\s+|\s*/\s*|[.?!]\s+or\s+){_OR}"
    r"(?P<other>[^\s,.;:?]+)",
    re.IGNORECASE,
)
OR_BEFORE = re.compile(rf"(?P<other>[^\s,.;:?/]+)(?P<comma>\s*,)?(?:\s+or\s+|\s*/\s*){_OR}\Z", re.IGNORECASE)
CONNECTS = re.compile(
    r"\A\W*(?:additionally|also|although|because|besides|furthermore|however|in addition|meanwhile|moreover|since"
    r"|though|while)\b",
    re.IGNORECASE,
)
BEGINS_WITH_OR = re.compile(r"\A\W*or\b", re.IGNORECASE)

_DAY_NAMES = (
    *("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh"),
    *("twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth"),
    *("twentieth", "twenty-first", "twenty-second", "twenty-third", "twenty-fourth", "twenty-fifth", "twenty-sixth"),
    *("twenty-seventh", "twenty-eighth", "twenty-ninth", "thirtieth", "thirty-first"),
)
_DAYS = {name: number for number, name in enumerate(_DAY_NAMES, 1)}
_SPELT_DAY = re.compile(
    rf"\b(?P<before>{'|'.join(sorted(_DAYS, key=len, reverse=True))})\b(?=\s+(?:of\s+)?{_MONTHS}\b)"
    rf"|(?<=\w\s)(?:the\s+)?(?P<after>{'|'.join(sorted(_DAYS, key=len, reverse=True))})\b(?=,?\s+\d{{4}}\b)",
    re.IGNORECASE,
)


def with_day_numbers(text: str) -> str:
    """The text with spelt-out days of a month as numbers: "the twentieth of July" becomes "the 20 of July"."""
    return _SPELT_DAY.sub(lambda match: str(_DAYS[(match["before"] or match["after"]).lower()]), text)
