"""Run folders are checked, and a broken file is named in one line."""

import json

import pytest
from helpers.run_folders import evaluation, finished, scored_by_return, started

from gcp_jax.report import read, run_page

GOOD = json.dumps(evaluation("base", 0, 0, 3))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", r"config.json is not JSON \(.*\); restore the file"),
        ("config.json", "[]", r"config.json: the content is \[\]; an object is expected; restore"),
        ("config.json", '{"format": 3}', "config.json: 'config' is missing; restore the file"),
        (
            "config.json",
            '{"format": 2, "config": {}}',
            "run holds a run of format 2, this version reads 3; report on it with the version",
        ),
        ("summary.json", "nope", "summary.json is not JSON"),
        (
            "metrics.jsonl",
            "nope\n{}\n",
            "metrics.jsonl, line 1: not a JSON object; delete the line",
        ),
        (
            "metrics.jsonl",
            '{"stage": "warmup"}\n',
            "line 1: 'stage' is 'warmup'; one of pretrain, base, finetune is expected; mend or",
        ),
        (
            "eval.jsonl",
            GOOD.replace("40", '"x"') + "\n",
            "eval.jsonl, row 1: 'eval/episodes' is 'x'; a whole number is expected",
        ),
        (
            "eval.jsonl",
            GOOD.replace("40", "2") + "\n",
            "eval.jsonl, row 1: seed 0 has 3 successes of 2 episodes",
        ),
        (
            "eval.jsonl",
            GOOD.replace('"eval/success": 0.075', '"eval/success": null') + "\n",
            "eval.jsonl, row 1: 'eval/success' must be a finite number",
        ),
    ],
)
def test_a_malformed_file_is_named_in_one_line(tmp_path, file, content, message):
    (started(tmp_path / "run") / file).write_text(content)
    with pytest.raises(read.ReportError, match=message) as raised:
        run_page.write(tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run" / "report").exists()


def test_success_and_return_are_not_put_side_by_side(tmp_path):
    runs = [scored_by_return(tmp_path / "hopper", {0: 900.0}), finished(tmp_path / "peg")]
    message = "peg is scored by success and hopper by return; report them separately"
    with pytest.raises(read.ReportError, match=message):
        run_page.write(runs, tmp_path / "both")


def test_a_population_is_one_run_for_each_of_its_points(tmp_path):
    run = read.read_run(finished(tmp_path / "run"))
    assert read.split_population(run, only_run=True) == [run]
    rows = [
        {**row, "population": point} if row["stage"] == "finetune" else row
        for point in ("lr=1", "lr=2")
        for row in run.evals
    ]
    population = run._replace(evals=rows)
    assert read.population_points(rows) == ["lr=1", "lr=2"]
    first, second = read.split_population(population, only_run=True)
    assert (first.label, second.label) == ("lr=1", "lr=2")
    assert read.split_population(population, only_run=False)[1].label == "run · lr=2"
    assert all(row.get("population", "lr=1") == "lr=1" for row in first.evals)
    assert sum(row["stage"] == "base" for row in second.evals) == 4  # shared by both points
