"""Synthetic folders of a benchmark: two tasks, three methods, three seeds."""

import csv
import json

import numpy as np

from gcp_jax.report.benchmark_read import clone_folder
from gcp_jax.run import metrics
from gcp_jax.stats.eval_rows import pack_success_bits
from helpers.run_folders import row

TASKS = ("peg_insert", "push_t")
METHODS = ("ogpo", "flow_grpo", "dp&po_<i>")
COMMAND = "gcp-jax benchmark --note='<script>alert(1)</script>'"
FAILURE = "FloatingPointError: <b>critic loss</b> is NaN"
STEPS = (0, 100, 200, 300)
EPISODES = 20

# [seeds, evaluations] successes of 20 episodes, and the training seconds between two evaluations
RUNS = {
    ("peg_insert", "ogpo"): ([[8, 10, 16, 18], [8, 12, 18, 20], [8, 8, 14, 19]], 10),
    ("peg_insert", "flow_grpo"): ([[8, 12, 9, 10], [8, 11, 9, 11], [8, 13, 9, 9]], 5),
    ("peg_insert", "dp&po_<i>"): ([[8, 9, 9, 9], [8, 9, 9, 10], [8, 9, 9, 11]], 40),
    ("push_t", "ogpo"): ([[11, 12, 15, 17], [11, 13, 15, 16], [11, 14, 15, 18]], 20),
    ("push_t", "flow_grpo"): ([[11, 13, 14, 14], [11, 12, 14, 16], [11, 14, 13, 15]], 30),
    ("push_t", "dp&po_<i>"): ([[11, 10, 12, 20], [11, 10, 11, 20], [11, 7, 10, 20]], 50),
}


def planned(folder, **changes):
    """A benchmark of which only the plan exists."""
    plan = {
        "command": COMMAND,
        "versions": {"jax": "0.10.2"},
        "commit": "3f2c1ab",
        "seeds": 3,
        "steps": 300,
        "tasks": [{"label": task, "env": task} for task in TASKS],
        "methods": [{"label": label, "algorithm": label[:4]} for label in METHODS],
    }
    folder.mkdir(parents=True)
    (folder / "benchmark.json").write_text(json.dumps({**plan, **changes}))
    return folder


def add_run(folder, task, method, upto=300, finished=True, seeds=3, clone=0):
    """Add the folder of one run, killed after ``upto`` environment steps unless finished.

    From clone c every seed has 2c successes fewer, and takes c seconds more between evaluations.
    """
    successes, interval = RUNS[task, method]
    successes = [[count - 2 * clone for count in seed] for seed in successes]
    run = clone_folder(folder / task, clone) / method
    run.mkdir(parents=True)
    gamma = 0.97 if method == "ogpo" else 0.99
    config = {
        "env": {"name": task},
        "algorithm": {"name": method, "gamma": gamma, "same": 7},
        "finetune": {"utd": 0.5},
        "run_dir": str(run),
    }
    (run / "config.json").write_text(json.dumps({"format": metrics.RUN_FORMAT, "config": config}))
    with metrics.make_writers(["jsonl"], run, {}) as writer:
        for index, steps in enumerate(STEPS):
            if steps <= upto:
                counts = {1000 * clone + s: successes[s][index] for s in range(seeds)}
                _write_rows(writer, method, steps, counts, index * (interval + clone))
    if finished:
        (run / "summary.json").write_text('{"seconds": 99.0}')


def _write_rows(writer, method, steps, successes, seconds):
    for seed, count in successes.items():
        numbers = {
            "eval/success": count / EPISODES,
            "eval/successes": count,
            "eval/episodes": EPISODES,
            "eval/success_bits": pack_success_bits(np.arange(EPISODES) < count),
        }
        if steps:
            numbers["train_seconds"] = seconds  # rows of the base policy may lack it
        writer.write(row("finetune" if steps else "base", seed, steps, steps // 4, **numbers))
        numbers = {
            "train/kl": 0.1,
            "time/updates_per_s": steps / 2,
            "time/env_steps_per_s": 100 + steps / 10 if steps else 9000,  # fast before learning
        }
        if method == "ogpo":
            numbers["train/q"] = 1.0
        writer.write(row("finetune", seed, steps, steps // 4, **numbers))


def partial_benchmark(folder):
    """Four runs finished, one failed, one running."""
    planned(folder)
    for task, method in RUNS:
        if (task, method) == ("peg_insert", "dp&po_<i>"):
            add_run(folder, task, method, upto=200, finished=False)
            (folder / task / method / "failed.txt").write_text(FAILURE + "\n")
        elif (task, method) == ("push_t", "flow_grpo"):
            add_run(folder, task, method, upto=100, finished=False)
        else:
            add_run(folder, task, method)
    return folder


def whole_benchmark(folder, seeds=3):
    """All six runs finished."""
    planned(folder, seeds=seeds)
    for task, method in RUNS:
        add_run(folder, task, method, seeds=seeds)
    return folder


def benchmark_of_clones(folder, clones=3, seeds=3):
    """All six runs finished from each of several clones."""
    planned(folder, seeds=seeds, clones=clones)
    for clone in range(clones):
        for task, method in RUNS:
            add_run(folder, task, method, seeds=seeds, clone=clone)
    return folder


def table(page):
    """The rows of ``table.csv`` beside a page, by task and method."""
    with (page.parent / "table.csv").open(encoding="utf-8") as file:
        return {(line["task"], line["method"]): line for line in csv.DictReader(file)}


def numbers(line, *names):
    return [float(line[name]) for name in names]


def finals(method, tasks=TASKS):
    """[seeds, tasks] final success."""
    return np.asarray([[seed[-1] / EPISODES for seed in RUNS[task, method][0]] for task in tasks]).T


def clone_finals(method, tasks=TASKS, clones=3):
    """[clones, seeds, tasks] final success."""
    counts = [[seed[-1] for seed in RUNS[task, method][0]] for task in tasks]
    return np.stack([(np.asarray(counts).T - 2 * clone) / EPISODES for clone in range(clones)])
