import pytest

from evaluators.token_overlap import TokenOverlap, nltk_tokens
from harness.types import Example, Generation, Record, Tools


def record(text, gold="The Coast Guard", aliases=(), prompt="Question: Who?\nAnswer:"):
    return Record(Example("e1", "Who?", gold, aliases), Generation("e1", {}, text, (), "stop"), prompt)


def scores(one, **options):
    return {score.metric: score.value for score in TokenOverlap(**options).score([one], Tools())}


@pytest.mark.parametrize(
    ("gold", "aliases", "text", "overlap", "contained"),
    [
        ("The Coast Guard", (), "It was the coast guard.", 1.0, 1.0),  # 2 of 2, the article does not count
        ("The Coast Guard", (), "A guard on the coast", 1.0, 0.0),  # both words, in another order
        ("Birmingham High School", (), "Birmingham school", 2 / 3, 0.0),
        ("Łódź", (), "in LODZ!", 1.0, 1.0),
        ("1,390 m", (), "about 1390 m long", 1.0, 1.0),
        ("139", (), "about 1390", 0.0, 0.0),  # whole words only
        ("Ney", (), "Monkeys and neyland", 0.0, 0.0),
        ("Michel Ney", ("Ney", "Marshal Ney"), "Ney, of course", 1.0, 1.0),  # the alias is met in full
        ("Michel Ney", ("Marshal Ney",), "Michel, the marshal", 0.5, 0.0),  # two halves make no whole
        ("Ada", (), "", 0.0, 0.0),
    ],
)
def test_hand_worked_values(gold, aliases, text, overlap, contained):
    assert scores(record(text, gold, aliases)) == {"overlap": pytest.approx(overlap), "contains_gold": contained}


def test_only_the_completion_is_scored_unless_told_otherwise():
    echo = record(" I do not know.", gold="Ada Lovelace", prompt="Was it Ada?")
    assert scores(echo)["overlap"] == 0
    assert scores(echo, scored_text="full")["overlap"] == 0.5


@pytest.mark.parametrize(
    ("gold", "text", "overlap"),
    [
        # quotation marks count as `` and '' , the colon does not: season, 4, episode, `` and '' of 8
        ('Season 4 Episode 12: "Paper Kites"', 'In Season 4, Episode 10, "The Kite"', 0.625),
        # can + not: "can" of the gold is not the "ca" of "can't"
        ("You cannot win", "You can't win", round(2 / 4, 4)),
        ("Quebec High School", "High School", 0.6667),
        ("The end", "An end", 0.5),  # articles count
        ("Zoë", "zoe", 0.0),  # accents count
        ("!", "!", 0.0),  # no token but a mark
    ],
)
def test_the_papers_rule_by_hand(gold, text, overlap):
    assert scores(record(text, gold, prompt=""), tokens="nltk", scored_text="full")["overlap"] == overlap


def test_nltk_tokens_cut_sentences_without_downloaded_data():
    assert nltk_tokens("It is Paris. Is it? **2023**") == ("it", "is", "paris", "is", "it", "2023")


def test_contains_gold_follows_the_chosen_tokens():
    assert scores(record("the coast guard came"), tokens="nltk")["contains_gold"] == 1
    assert scores(record("a coast guard came"), tokens="nltk")["contains_gold"] == 0


def test_a_gold_without_a_word_is_unscored():
    scored = TokenOverlap().score([record("?", gold="?!")], Tools())
    assert [score.value for score in scored] == [None, None]
    assert "'?!'" in scored[0].reason


@pytest.mark.parametrize("options", [{"scored_text": "prompt"}, {"tokens": "bpe"}])
def test_unknown_settings_are_refused(options):
    (name, value), *_ = options.items()
    with pytest.raises(ValueError, match=rf"token_overlap\.{name} must be .*got '{value}'"):
        TokenOverlap(**options)
