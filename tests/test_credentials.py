"""Credentials in addresses reach nothing that is written."""

import pytest

from harness.credentials import without_credentials
from harness.judges.openai import OpenAIJudge


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("http://user:pass@host/v1?api-key=K&b=1", "http://host/v1?api-key=***&b=1"),
        ("judge.base_url=https://token@host:8000/v1", "judge.base_url=https://host:8000/v1"),
        ("https://host/data.csv?raw=1", "https://host/data.csv?raw=1"),
        ("hf://owner/name@main is no user", "hf://owner/name@main is no user"),
        ("mail me@host, see http://host/a", "mail me@host, see http://host/a"),
        ({"a": ["http://u:p@h"], "b": 5, "c": None}, {"a": ["http://h"], "b": 5, "c": None}),
        (("http://u:p@h",), ("http://h",)),
    ],
)
def test_addresses_lose_their_credentials_and_nothing_else(text: object, public: object) -> None:
    assert without_credentials(text) == public


def test_a_judges_identity_and_errors_hold_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden-key")
    judge = OpenAIJudge(model="m", base_url="http://user:sk-inside@127.0.0.1:9/v1?api-key=sk-query", attempts=1)
    assert "127.0.0.1:9" in judge.identity
    assert "sk-" not in judge.identity

    with pytest.raises(ConnectionError) as caught:
        judge.preflight()
    assert "sk-" not in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": ""}, "judge.model must name a model"),
        ({"base_url": "nosuch"}, "judge.base_url must be an http"),
        ({"key_variable": "sk-my key"}, "judge.key_variable must be the name"),
    ],
)
def test_settings_that_can_reach_no_judge_are_refused(settings: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        OpenAIJudge(**{"model": "m", **settings})
    assert "sk-my" not in str(caught.value)
