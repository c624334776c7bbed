import pytest
import torch
from laws.tiny_classifier import LONGEST, ONE_LABEL, Kind, classifier_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from evaluators.toxicity import Toxicity
from harness.types import Example, Generation, Record, Tools

TEXTS = ("You are a fool.", "What a lovely day it is!", "a", "x" * 400)


def records(*texts):
    return [
        Record(Example(f"e{number}", "Go on"), Generation(f"e{number}", {}, text, (), "stop"), "Go on:")
        for number, text in enumerate(texts)
    ]


def by_hand(text, kind=ONE_LABEL):
    """The classifier's probabilities of one text alone, without any of the evaluator's code."""
    model = AutoModelForSequenceClassification.from_pretrained(classifier_folder(kind)).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier_folder(kind))
    ids = torch.tensor([tokenizer(text).input_ids[:LONGEST]])
    with torch.inference_mode():
        logits = model(ids).logits[0]
    return (logits.sigmoid() if kind.several else logits.softmax(-1)).tolist()


def values(evaluator, *texts, metric="toxicity"):
    return [score.value for score in evaluator.score(records(*texts), Tools()) if score.metric == metric]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_it_is_the_probability_of_the_label_whatever_the_batch(batch_size):
    evaluator = Toxicity(model=str(classifier_folder()), batch_size=batch_size)
    expected = [by_hand(text)[1] for text in TEXTS]
    assert values(evaluator, *TEXTS) == pytest.approx(expected, abs=1e-4)
    assert len(set(values(evaluator, *TEXTS))) == len(TEXTS), "texts that score alike would prove nothing"


def test_another_label_may_count():
    first, second = (Toxicity(model=str(classifier_folder()), label=label) for label in ("neutral", "toxic"))
    for one, other in zip(values(first, *TEXTS), values(second, *TEXTS), strict=True):
        assert one + other == pytest.approx(1, abs=1e-3)


def test_labels_that_do_not_exclude_each_other_are_read_one_by_one():
    kind = Kind(("toxic", "insult", "threat"), several=True)
    evaluator = Toxicity(model=str(classifier_folder(kind)))
    assert values(evaluator, *TEXTS) == pytest.approx([by_hand(text, kind)[0] for text in TEXTS], abs=1e-4)


def test_the_threshold_decides():
    probability = by_hand(TEXTS[0])[1]
    for threshold, expected in ((probability - 0.01, 1.0), (probability + 0.01, 0.0)):
        evaluator = Toxicity(model=str(classifier_folder()), threshold=threshold)
        assert values(evaluator, TEXTS[0], metric="toxic") == [expected]


def test_the_prompt_counts_if_asked_for():
    evaluator = Toxicity(model=str(classifier_folder()), scored_text="full")
    assert values(evaluator, " fool.") == pytest.approx([by_hand("Go on: fool.")[1]], abs=1e-4)


def test_an_empty_completion_has_no_toxicity():
    first, second = Toxicity(model=str(classifier_folder())).score(records(" ")[:1], Tools())
    assert first.value is second.value is None
    assert first.reason == "the completion is empty"


def test_a_missing_label_is_named_with_those_there_are():
    evaluator = Toxicity(model=str(classifier_folder()), label="rude")
    with pytest.raises(ValueError, match=r"toxicity\.label must be one of neutral, toxic .*, got rude"):
        evaluator.check([])


def test_a_classifier_that_is_not_there_is_named_before_anything_loads(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConnectionError, match=r"toxicity\.model=nobody/nothing is neither a folder nor"):
        Toxicity(model="nobody/nothing").check([])
    with pytest.raises(ValueError, match=r"toxicity\.model=.* holds no classifier"):
        Toxicity(model=str(tmp_path)).check([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, r"toxicity\.threshold must be above 0"),
        ({"threshold": 1.5}, r"toxicity\.threshold must be above 0"),
        ({"scored_text": "all"}, r"toxicity\.scored_text must be completion or full, got 'all'"),
        ({"batch_size": 0}, r"toxicity\.batch_size must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Toxicity(model="x", **options)
