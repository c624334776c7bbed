"""The report in a real browser: its filters, its search, its themes, and outputs that try to run as script."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sample_runs import write_sweep

from harness.report.files import write_report
from harness.report.groups import compare_groups

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000
"""Milliseconds until a page that does not answer counts as broken: a busy machine is not a broken page."""
HOSTILE = (
    '</script><script>window.owned = 1</script><img src=x onerror="window.owned = 1">'
    '<svg onload="window.owned = 1"></svg>\u2028 '
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sweep")
    write_sweep(directory, count=40, text=lambda index, text: HOSTILE + text if index == 3 else text)
    return write_report(compare_groups([directory]), directory)[2]


@pytest.fixture(scope="module")
def browser() -> Iterator["playwright.Browser"]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def opened(browser: "playwright.Browser", report: Path) -> Iterator["playwright.Page"]:
    """One page for all tests; whatever goes wrong in it, or leaves the machine, is a failure of the last one."""
    page = browser.new_page(viewport={"width": 1366, "height": 850}, color_scheme="light")
    page.set_default_timeout(PATIENCE)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: problems.append(request.url) if request.url.startswith("http") else None)
    page.goto(report.as_uri())
    page.wait_for_selector(".card")
    yield page
    page.close()
    assert problems == []


@pytest.fixture
def page(opened: "playwright.Page") -> "playwright.Page":
    """The browser of outputs as it was when the page was opened."""
    for name, value in (("left", "baseline"), ("right", "segmented"), ("metric", "overlap"), ("filter", "all")):
        opened.select_option(f"[data-{name}]", value)
    opened.fill("[data-search]", "")
    return opened


def cards(page: "playwright.Page") -> list[str]:
    return page.locator(".card").all_inner_texts()


def count(page: "playwright.Page") -> str:
    return page.locator("[data-count]").inner_text()


def test_it_opens_offline_with_every_section(page: "playwright.Page") -> None:
    headings = page.locator("h2").all_inner_texts()
    assert headings[:2] == ["Leaderboard", "Claims and differences"]
    assert {"Strength curves", "Objective against trials", "Chosen strengths", "Provenance"} <= set(headings)
    assert page.locator(".plot .main-svg").count() >= 6
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_gained_shows_only_what_was_gained(page: "playwright.Page") -> None:
    assert count(page) == "40 of 40 examples."
    page.select_option("[data-metric]", "correct")
    page.select_option("[data-filter]", "gained")
    while page.locator("[data-more]").is_visible():
        page.click("[data-more]")

    shown = cards(page)
    assert shown
    assert count(page) == f"{len(shown)} of 40 examples."
    for text in shown:
        assert "gained" in text
        assert re.findall(r"\bcorrect (\d)", text) == ["0", "1"]

    page.select_option("[data-filter]", "lost")
    assert all("lost" in text for text in cards(page))


def test_a_metric_to_be_lowered_is_gained_when_it_falls(page: "playwright.Page") -> None:
    page.select_option("[data-metric]", "incorrect")
    page.select_option("[data-filter]", "gained")
    falling = count(page)
    page.select_option("[data-metric]", "correct")
    assert count(page) == falling


def test_degenerate_shows_loops_only(page: "playwright.Page") -> None:
    page.select_option("[data-right]", "segmented · shuffled")
    page.select_option("[data-filter]", "degenerate")
    shown = cards(page)
    assert 0 < len(shown) < 40
    assert all("the the comet" in text for text in shown)


def test_search_finds_questions_outputs_and_nothing(page: "playwright.Page") -> None:
    page.fill("[data-search]", "the 7th comet")
    assert count(page) == "1 of 40 examples."
    assert "Mira Quill7" in cards(page)[0]
    page.fill("[data-search]", "no such words")
    assert count(page) == "0 of 40 examples."
    assert cards(page) == []


def test_long_lists_come_in_parts(page: "playwright.Page") -> None:
    assert len(cards(page)) == 20
    page.click("[data-more]")
    assert len(cards(page)) == 40
    assert page.locator("[data-more]").is_hidden()


def test_words_of_the_gold_are_marked(page: "playwright.Page") -> None:
    page.fill("[data-search]", "q003")
    marked = set(page.locator(".card .side .hit").all_inner_texts())
    assert marked
    assert {word.strip(",") for word in marked} <= {"Mira", "Quill3"}


def test_script_in_an_output_is_shown_as_text_and_does_not_run(page: "playwright.Page") -> None:
    page.fill("[data-search]", "window.owned")
    assert count(page) == "1 of 40 examples."
    assert "<script>window.owned = 1</script>" in cards(page)[0]
    assert page.locator(".card img, .card svg, .card script").count() == 0
    page.wait_for_timeout(200)
    assert page.evaluate("window.owned === undefined")


def test_injected_script_is_stopped_by_the_policy(browser: "playwright.Browser", report: Path) -> None:
    """Even if an output became markup, the policy would not run it."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(report.as_uri())
    page.wait_for_selector(".card")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.owned = 1\">')")
    page.wait_for_timeout(300)
    assert page.evaluate("window.owned === undefined")
    page.close()


def test_figures_change_with_their_buttons(page: "playwright.Page") -> None:
    box = page.locator(".plot[data-section=differences]")
    assert "difference in correct (better is right)" in box.inner_text()
    box.get_by_role("button", name="perplexity · deployable").click()
    assert "difference in perplexity (better is left)" in box.inner_text()


def test_the_theme_follows_the_system_and_the_button(page: "playwright.Page") -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(background)
    assert light != dark
    page.click("#theme")
    assert page.evaluate(background) == light
    page.click("#theme")
    assert page.evaluate(background) == dark
