"""Comparing runs from disk: what is refused, what is listed as not counted, what is compared with what."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from sample_runs import questions, reseal, rewrite, write_run, write_sweep

from harness.records.stored import read_run
from harness.report.answer import answer
from harness.report.compare import compare
from harness.report.countable import run_folders
from harness.report.curves import steerability
from harness.report.entries import Entry
from harness.report.files import write_report
from harness.report.groups import compare_groups
from harness.report.summary import summary

UNMOVED = {"relative_change": 0.0, "tokens_prompt": 9, "tokens_completion": 9}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def generations(run: Path) -> Path:
    return run / json.loads((run / "run.json").read_text())["generations"] / "generations.jsonl"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_sweep(tmp_path_factory.mktemp("sweep"))


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    return [write_run(tmp_path, "baseline"), write_run(tmp_path, "caa", strength=1.0)]


def test_oracles_and_deployable_entries_are_kept_apart(sweep: list[Path]) -> None:
    comparison = compare(sweep)
    assert {entry.label("method") for entry in comparison.deployable} == {"baseline", "prompting", "caa"}
    assert {entry.label("method") for entry in comparison.oracles} == {"full_layer", "segmented"}
    assert comparison.entry("segmented").optimised_metrics == {"overlap"}
    assert not comparison.entry("prompting").optimised_metrics


def test_steerability_is_the_mean_slope_of_single_examples(tmp_path: Path) -> None:
    """Two of four examples gain 0.1 per unit of strength, one nothing, one loses 0.1; the baseline stands at 0."""
    slopes = {"q000": 0.1, "q001": 0.1, "q002": 0.0, "q003": -0.1}
    runs = {0.0: write_run(tmp_path, "baseline", count=4)}
    runs |= {strength: write_run(tmp_path, "caa", strength=strength, count=4) for strength in (1.0, 3.0)}
    for strength, run in runs.items():
        values = {example: 0.5 + slope * strength for example, slope in slopes.items()}
        rows = [row | {"value": values[row["example_id"]]} for row in lines(run / "scores.jsonl")]
        write_lines(run / "scores.jsonl", [row for row in rows if row["metric"] == "overlap"])
        mean = sum(values.values()) / 4
        reseal(run)
        figures = {"value": mean, "low": 0, "high": 1, "num_scored": 4, "num_unscored": 0}
        rewrite(run, estimates={"overlap": {"metric": "overlap", **figures}})

    comparison = compare(list(runs.values()), primary="overlap")
    (item,) = steerability(comparison)
    assert item.slope.value == pytest.approx(0.025)
    assert item.anti_steerable.value == 0.25

    page = write_report([comparison], tmp_path / "out")[2].read_text()
    assert "Anti-steerable" in page
    assert json.loads((tmp_path / "out" / "comparison.json").read_text())["comparisons"][0]["steerability"]


def test_names_say_no_more_than_is_needed(sweep: list[Path]) -> None:
    names = {entry.name for entry in compare(sweep).entries}
    assert {"baseline", "segmented", "segmented · shuffled", "caa (strength=2.0)"} <= names


def test_strengths_are_listed_by_size(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "prompting")]
    runs += [write_run(tmp_path, "caa", strength=strength) for strength in (10.0, 0.5, -1.0, 2.0, 1e-05)]
    runs += [write_run(tmp_path, method) for method in ("austeer", "baseline")]
    strengths = [f"caa (strength={strength})" for strength in ("-1.0", "1e-05", "0.5", "2.0", "10.0")]
    assert [entry.name for entry in compare(runs).entries] == ["baseline", "prompting", *strengths, "austeer"]


def test_what_is_compared_with_what(sweep: list[Path]) -> None:
    comparison = compare(sweep)
    kinds = {(c.ours, c.theirs): c.kind for c in comparison.contrasts}
    assert kinds["segmented", "baseline"] == "baseline"
    assert kinds["segmented", "segmented · best_of_n"] == "control"
    assert kinds["full_layer", "segmented"] == "methods"
    assert ("segmented", "full_layer · shuffled") not in kinds
    assert ("prompting", "segmented") not in kinds, "a deployable method is not ranked against an oracle"
    assert ("caa (strength=1.0)", "caa (strength=2.0)") not in kinds


def test_one_metric_is_tested_the_one_that_the_task_names(sweep: list[Path]) -> None:
    comparison = compare(sweep)
    assert comparison.primary == "correct"
    assert comparison.headline == ("correct", "overlap", "perplexity")
    claimed = {contrast.difference.metric for claim in comparison.claims for contrast in claim.opponents}
    assert claimed == {"correct"}
    assert {c.difference.metric for c in comparison.contrasts if c.p_holm is not None} <= {"correct"}


def test_another_metric_to_test_can_be_chosen_and_is_pointed_out(sweep: list[Path]) -> None:
    comparison = compare(sweep, primary="repetition")
    assert comparison.headline[0] == comparison.primary == "repetition"
    assert "repetition tested, not correct" in [notice.label for notice in comparison.notices]
    with pytest.raises(ValueError, match=r"no run has the metric sparkle; there are overlap, correct"):
        compare(sweep, primary="sparkle")


def test_runs_that_name_different_metrics_to_test_need_a_choice(pair: list[Path]) -> None:
    config = json.loads((pair[1] / "run.json").read_text())["config"]
    rewrite(pair[1], config=config | {"task": config["task"] | {"primary": "overlap"}})
    with pytest.raises(ValueError, match=r"name different metrics to test, correct, overlap; choose one with --metric"):
        compare(pair)
    assert compare(pair, primary="overlap").primary == "overlap"


def test_a_real_effect_is_found_and_said(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path, "baseline", skill=0.1, count=100),
        write_run(tmp_path, "caa", strength=1.0, skill=0.7, count=100),
    ]
    comparison = compare(runs)
    (claim,) = comparison.claims
    assert (claim.method, claim.verdict) == ("caa", "better")
    assert answer(comparison) == "On 100 questions, in “correct”: caa is better than the un-steered model."
    text = next(finding.text for finding in summary(comparison) if finding.subject == "caa")
    assert "Better (p < 0.001, after Holm < 0.001)." in text


def test_other_examples_are_refused(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "baseline", count=10), write_run(tmp_path, "caa", strength=1.0, count=12)]
    with pytest.raises(ValueError, match=r"share 10 of 12 examples.*only in the second: q010, q011"):
        compare(runs)


def test_examples_shuffled_between_runs_are_refused(pair: list[Path]) -> None:
    rows = lines(generations(pair[1]))
    rows[0]["question"], rows[1]["question"] = rows[1]["question"], rows[0]["question"]
    write_lines(generations(pair[1]), rows)
    reseal(pair[1])
    with pytest.raises(ValueError, match="another question for example q000"):
        compare(pair)


def test_another_gold_is_refused(pair: list[Path]) -> None:
    rows = lines(generations(pair[1]))
    rows[3]["answer"] = "23-Oct-18"
    write_lines(generations(pair[1]), rows)
    reseal(pair[1])
    with pytest.raises(ValueError, match=r"another gold for example q003.*23-Oct-18"):
        compare(pair)


def test_another_task_fingerprint_is_refused(pair: list[Path]) -> None:
    rewrite(pair[1], provenance={"task_fingerprint": "other", "model_identity": "tiny@abc"})
    with pytest.raises(ValueError, match="task fingerprints facts-40 and other"):
        compare(pair)


def test_another_evaluator_version_is_refused(pair: list[Path]) -> None:
    evaluators = json.loads((pair[1] / "run.json").read_text())["evaluators"]
    evaluators["token_overlap"]["version"] = 2
    rewrite(pair[1], evaluators=evaluators)
    with pytest.raises(ValueError, match=r"the version of token_overlap is 1 in baseline.* and 2 in caa"):
        compare(pair)


def test_other_evaluator_settings_are_refused(pair: list[Path]) -> None:
    for run, text in zip(pair, ("completion", "full"), strict=True):
        config = json.loads((run / "run.json").read_text())["config"]
        rewrite(run, config=config | {"evaluator": {"token_overlap": {"scored_text": text}}})
    with pytest.raises(ValueError, match=r"the scored_text of token_overlap is completion in .* and full in"):
        compare(pair)


def test_another_judge_is_refused(pair: list[Path]) -> None:
    rewrite(pair[0], judge="match@1")
    rewrite(pair[1], judge="local@7")
    with pytest.raises(ValueError, match=r"judge is match@1 in .* and local@7"):
        compare(pair)


def test_another_model_is_refused_unless_asked_for(pair: list[Path]) -> None:
    provenance = json.loads((pair[1] / "run.json").read_text())["provenance"]
    rewrite(pair[1], provenance=provenance | {"model_identity": "big@xyz"})
    with pytest.raises(ValueError, match=r"tiny@abc.*big@xyz.*--across-models"):
        compare(pair)
    assert len(compare(pair, across_models=True).entries) == 2


@pytest.mark.parametrize("part", ["scores", "generations"])
def test_a_truncated_run_is_refused(pair: list[Path], part: str) -> None:
    path = pair[1] / "scores.jsonl" if part == "scores" else generations(pair[1])
    write_lines(path, lines(path)[:-7])
    with pytest.raises(ValueError, match=r"caa-fixed-none-0-1: .*is not what it was when the run was done: it holds"):
        compare(pair)
    assert [item.name for item in compare(pair, strict=False).failures] == ["caa-fixed-none-0-1"]
    reseal(pair[1])
    with pytest.raises(ValueError, match=r"caa-fixed-none-0-1: truncated"):
        compare(pair)


def test_deleted_trials_are_noticed(tmp_path: Path) -> None:
    run = write_run(tmp_path, "segmented", search="per_prompt", trials=2, count=4, oracle=True)
    (generations(run).parent / "trials.jsonl").unlink()
    with pytest.raises(ValueError, match=r"trials\.jsonl is missing; it held 8 lines"):
        list(read_run(run).trials())


def test_a_torn_last_line_is_noticed_and_a_broken_middle_named(pair: list[Path]) -> None:
    path = pair[1] / "scores.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(ValueError, match="it holds 239 lines, 240 were written"):
        compare(pair)
    path.write_text("{oops\n" + whole)
    with pytest.raises(ValueError, match=r"scores.jsonl, line 1, is damaged \(not valid JSON"):
        compare(pair)


def test_scores_that_do_not_give_the_estimate_are_refused(pair: list[Path]) -> None:
    rows = lines(pair[1] / "scores.jsonl")
    for row in rows:
        if row["metric"] == "correct":
            row["value"] = 1.0
    write_lines(pair[1] / "scores.jsonl", rows)
    with pytest.raises(ValueError, match=r"scores.jsonl is not what it was when the run was done: lines were changed"):
        compare(pair)
    reseal(pair[1])
    with pytest.raises(ValueError, match=r"scores were changed: run.json says correct"):
        compare(pair)


def test_failed_and_running_runs_are_listed(pair: list[Path], tmp_path: Path) -> None:
    failed = write_run(tmp_path, "lat", status="failed", error="RuntimeError: no space")
    running = write_run(tmp_path, "pca", status="running")
    comparison = compare([*pair, failed, running])
    assert [item.reason for item in comparison.failures] == [
        "failed: RuntimeError: no space",
        "running: no reason stored",
    ]
    assert len(comparison.entries) == 2


@pytest.mark.parametrize(
    ("receipt", "reason"),
    [
        (None, "no receipt"),
        ({"sites_hit": 0, "sites": {}}, "did not change at any of 0 sites"),
        ({"sites_hit": 2, "sites": {"0.block": UNMOVED}}, "did not change at any of 1 sites"),
        ({"sites_hit": 0, "sites": {"0.block": UNMOVED}, "idle": True}, "did not change at any of 1 sites"),
    ],
)
def test_a_method_without_proof_of_steering_is_not_a_result(
    pair: list[Path], receipt: dict | None, reason: str
) -> None:
    rewrite(pair[1], receipt=receipt and {"rows": 8, "sites_missed": [], "kl_mean": 0.1, "kl_max": 0.2} | receipt)
    comparison = compare(pair)
    assert [entry.name for entry in comparison.entries] == ["baseline"]
    assert reason in comparison.failures[0].reason


def test_a_control_that_found_nothing_to_do_counts_and_is_named(pair: list[Path], tmp_path: Path) -> None:
    shuffled = write_run(tmp_path, "caa", control="shuffled", strength=1.0)
    idle = {"rows": 8, "sites_missed": [], "kl_mean": 0.0, "kl_max": 0.0, "sites_hit": 0, "sites": {"0.block": UNMOVED}}
    rewrite(shuffled, receipt=idle)
    assert "did not change" in compare([*pair, shuffled]).failures[0].reason
    rewrite(shuffled, receipt=idle | {"idle": True})
    comparison = compare([*pair, shuffled])
    assert not comparison.failures
    assert [notice.text for notice in comparison.notices if notice.label == "controls that found nothing to do"] == [
        "caa · shuffled: no hidden state changed in the rows that were looked at, because what decides whether the "
        "method acts learnt from shuffled data. Such a control is little else than the un-steered model."
    ]


def test_seeds_are_combined_by_example(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, "baseline", seed=seed) for seed in range(3)]
    runs += [write_run(tmp_path, "caa", strength=1.0, seed=seed, skill=0.5) for seed in range(3)]
    comparison = compare(runs)
    assert [(entry.name, len(entry.runs)) for entry in comparison.entries] == [("baseline", 3), ("caa", 3)]
    assert comparison.estimates["caa"]["correct"].num_scored == 40
    contrast = comparison.contrast("caa", "baseline", "correct")
    assert contrast is not None
    assert (contrast.difference.num_pairs, contrast.difference.test) == (40, "permutation")


def copied(run: Path) -> Path:
    copy = run.parent / "copy"
    copy.mkdir()
    for name in ("run.json", "scores.jsonl"):
        (copy / name).write_text((run / name).read_text())
    return copy


def test_the_same_run_twice_counts_once(pair: list[Path]) -> None:
    comparison = compare([*pair, copied(pair[0])])
    assert [len(entry.runs) for entry in comparison.entries] == [1, 1]


def test_two_runs_of_one_seed_that_disagree_are_refused(pair: list[Path]) -> None:
    copy = copied(pair[0])
    rows = lines(copy / "scores.jsonl")
    for row in rows:
        if row["metric"] == "repetition":
            row["value"] = 0.5
    write_lines(copy / "scores.jsonl", rows)
    rewrite(copy, estimates={})
    reseal(copy)
    with pytest.raises(ValueError, match="the same run was given 2 times"):
        compare([*pair, copy])


def test_no_p_value_against_a_baseline_that_had_to_fail(pair: list[Path]) -> None:
    for run in pair:
        rewrite(run, subset={"name": "baseline_incorrect", "decided_by": [], "ids": [], "of": 40})
    comparison = compare(pair)
    (claim,) = comparison.claims
    assert claim.p is None
    assert claim.untested == "the baseline was bound to lose, and no control was run"
    assert any("0 by construction" in notice.text for notice in comparison.notices)


def test_a_subset_may_generate_more_than_it_scores(pair: list[Path]) -> None:
    for run in pair:
        rows = [row for row in lines(run / "scores.jsonl") if row["example_id"] < "q030"]
        write_lines(run / "scores.jsonl", rows)
        ids = sorted({row["example_id"] for row in rows})
        subset = {"name": "baseline_incorrect", "decided_by": [], "ids": ids, "of": 40}
        rewrite(run, estimates={}, num_examples=30, subset=subset)
        reseal(run)
    assert len(compare(pair).examples) == 30


def test_unequal_budgets_are_pointed_out(tmp_path: Path) -> None:
    options = {"search": "per_prompt", "oracle": True}
    runs = [
        write_run(tmp_path, "segmented", trials=16, **options),
        write_run(tmp_path, "segmented", control="best_of_n", trials=8, **options),
    ]
    comparison = compare(runs)
    assert {contrast.unequal_budget for contrast in comparison.contrasts} == {(640, 320)}
    assert any(notice.text.startswith("Unequal budgets: segmented used 640 trials") for notice in comparison.notices)


def test_a_control_without_method_speaks_for_all_methods_that_saw_as_much(tmp_path: Path) -> None:
    options = {"search": "per_prompt", "oracle": True, "trials": 4}
    runs = [write_run(tmp_path, method, **options) for method in ("full_layer", "segmented")]
    runs.append(write_run(tmp_path, "baseline", control="best_of_n", **options))
    runs.append(write_run(tmp_path, "prompting"))
    pairs = {(c.ours, c.theirs) for c in compare(runs).contrasts if c.kind == "control"}
    assert pairs == {("full_layer", "baseline · best_of_n"), ("segmented", "baseline · best_of_n")}


def test_a_sweep_over_tasks_gives_one_comparison_each(tmp_path: Path) -> None:
    for task in ("facts", "triviaqa"):
        for method in ("baseline", "prompting"):
            run = write_run(tmp_path / task, method)
            labels = json.loads((run / "run.json").read_text())["labels"]
            rewrite(run, labels=labels | {"task": task})
    assert [item.title for item in compare_groups([tmp_path])] == ["facts on tiny", "triviaqa on tiny"]


def test_a_sweep_reports_what_cannot_be_compared(pair: list[Path], tmp_path: Path) -> None:
    rows = lines(generations(pair[1]))
    rows[3]["answer"] = "23-Oct-18"
    write_lines(generations(pair[1]), rows)
    reseal(pair[1])
    comparisons = compare_groups([tmp_path], strict=False)
    assert not comparisons[0].entries
    assert all("another gold" in failure.reason for failure in comparisons[0].failures)


def test_a_folder_used_again_with_another_limit_gives_a_comparison_for_each(tmp_path: Path) -> None:
    for count in (10, 12):
        write_run(tmp_path / str(count), "baseline", count=count)
        write_run(tmp_path / str(count), "caa", strength=1.0, count=count)
    rewrite(write_run(tmp_path / "early", "prompting"), status="failed", error="no memory", provenance={})
    comparisons = compare_groups([tmp_path], strict=False)
    assert [(len(item.entries), len(item.examples)) for item in comparisons] == [(2, 10), (2, 12)]
    assert [len(item.failures) for item in comparisons] == [1, 0], (
        "a run that says nothing of its items stands with the first"
    )


def test_when_every_run_failed_the_reasons_are_given(tmp_path: Path) -> None:
    run = write_run(tmp_path, "caa", status="failed", error="no memory")
    with pytest.raises(ValueError, match=r"no run can be compared: .*no memory"):
        compare([run])
    assert [failure.reason for failure in compare([run], strict=False).failures] == ["failed: no memory"]


def test_missing_optional_parts_are_tolerated(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, method) for method in ("baseline", "prompting")]
    for run in runs:
        info = json.loads((run / "run.json").read_text())
        for key in ("cost", "provenance", "receipt", "derived", "judge_calibration", "access"):
            info.pop(key)
        (run / "run.json").write_text(json.dumps(info))
    assert [entry.name for entry in compare(runs).entries] == ["baseline", "prompting"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "is damaged"),
        ("[]", "has format None"),
        ('{"format": 2}', "has format 2; this version reads format 1"),
        ('{"format": 1}', "key: Field required"),
        ("\x00", "is damaged"),
    ],
)
def test_a_foreign_or_damaged_run_is_one_listed_line(pair: list[Path], content: str, reason: str) -> None:
    (pair[1] / "run.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        compare(pair)
    comparison = compare(pair, strict=False)
    assert [entry.name for entry in comparison.entries] == ["baseline"]
    assert reason in comparison.failures[0].reason
    assert "\n" not in comparison.failures[0].reason


def test_places_without_runs_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run.json here or below"):
        run_folders([tmp_path])
    with pytest.raises(ValueError, match="is not a run"):
        read_run(tmp_path)


def test_entries_average_seeds(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path, "baseline", seed=seed)) for seed in range(2)]
    entry = Entry("baseline", tuple(runs), {})
    example = questions(1)[0].id
    first, second = (run.scores["perplexity"][example] for run in runs)
    assert entry.scores("perplexity")[example] == pytest.approx((first * second) ** 0.5)
    assert entry.scores("repetition")[example] == pytest.approx(
        sum(run.scores["repetition"][example] for run in runs) / 2
    )


def test_a_doubtful_judge_is_marked_and_a_trusted_one_is_not(pair: list[Path]) -> None:
    known = {"judge": "match@1", "kappa": 0.66, "low": 0.55, "high": 0.75, "mark": "not trustworthy"}
    for run in pair:
        rewrite(run, judge="match@1", judge_calibration=known)
    cautions = [finding.text for finding in summary(compare(pair)) if finding.subject == "Caution"]
    assert "‡ correct and incorrect: graded by match@1: not trustworthy, kappa 0.660 [0.550, 0.750]." in cautions
    for run in pair:
        rewrite(run, judge_calibration=known | {"mark": "trustworthy"})
    comparison = compare(pair)
    assert not any("graded by" in finding.text for finding in summary(comparison))
    assert comparison.calibration("overlap") is None


def test_a_judged_metric_is_marked_whatever_the_judge_writes_into_its_scores(pair: list[Path]) -> None:
    """That a metric hangs on a judge is a fact of the record, not of what stands in the details of its scores."""
    for run in pair:
        rewrite(run, judge="somebody's judge", judge_calibration=None)
    calibration = compare(pair).calibration("correct")
    assert calibration == {"judge": "somebody's judge", "mark": "not calibrated"}
    assert compare(pair).calibration("overlap") is None


def test_beside_a_score_of_ratings_stands_what_was_measured_of_ratings(pair: list[Path]) -> None:
    """A judge that labels answers well may rate texts badly."""
    known = {"judge": "somebody", "kappa": 0.9, "low": 0.8, "high": 0.95, "mark": "trustworthy"}
    for run in pair:
        evaluators = json.loads((run / "run.json").read_text())["evaluators"]
        notes = [note for evaluator in evaluators.values() for note in evaluator["metrics"]]
        next(note for note in notes if note["name"] == "correct")["rubrics"] = ["axbench_fluency"]
        rewrite(run, judge="somebody", judge_calibration=known, evaluators=evaluators)
    comparison = compare(pair)
    assert comparison.calibration("correct") == {"judge": "somebody", "mark": "not calibrated"}
    assert comparison.calibration("incorrect") == known

    rated = {"mark": "not trustworthy", "kappa": 0.2, "low": 0.1, "high": 0.3}
    for run in pair:
        rewrite(run, judge_calibration=known | {"ratings": {"axbench_fluency": rated}})
    assert compare(pair).calibration("correct") == {"judge": "somebody", **rated}


def test_comparing_needs_no_torch() -> None:
    script = "import sys, harness.commands.compare; print({'torch', 'transformers', 'hydra'} & set(sys.modules))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "set()"
