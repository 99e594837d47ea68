"""Synthetic run folders, and a parser of the pages that reports write."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser

from gcp_jax.run import metrics

COMMAND = "train --note='<script>alert(1)</script>'"
RATES = {0: 0.5, 640: 0.75, 1280: 1.0}  # success of every seed after so many environment steps
DEMONSTRATIONS = {
    "episodes": 200,
    "success": 0.715,
    "modes": [88, 112],
    "return": -61.8,
    "trajectory_quality": 0.503,
    "coverage": None,
}


def row(stage, seed, env_steps, updates, **numbers):
    return {
        "stage": stage,
        "seed": seed,
        "env_steps": env_steps,
        "updates": updates,
        "seconds": 9.0,
        **numbers,
    }


def evaluation(stage, seed, env_steps, successes):
    """A row of ``eval.jsonl`` with 40 episodes."""
    numbers = {
        "eval/success": successes / 40,
        "eval/successes": successes,
        "eval/episodes": 40,
        "eval/return": -3.0,
        "eval/length": 12.0,
    }
    numbers["train_seconds"] = 40.5 * env_steps / 1280
    return row(stage, seed, env_steps, env_steps // 8, **numbers)


def started(folder, **config):
    """A run folder as it is when the run has just started."""
    folder.mkdir(parents=True)
    record = {
        "format": metrics.RUN_FORMAT,
        "config": {"env": {"name": "peg"}, "algorithm": "flow_grpo", **config},
        "command": COMMAND,
        "versions": {"jax": "0.10.2"},
        "commit": "3f2c1ab",
    }
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def stopped(folder, seeds=(0, 1), upto=1280, **config):
    """A run folder whose process was killed after ``upto`` environment steps."""
    started(folder, **config)
    with metrics.make_writers(["jsonl"], folder, {}) as writer:
        for seed in seeds:
            writer.write(row("pretrain", seed, 0, 10, **{"train/flow_loss": 1.0}))
            for steps, rate in RATES.items():
                if steps <= upto:
                    _write_rows(writer, seed, steps, rate)
    return folder


def _write_rows(writer, seed, steps, rate):
    stage = "finetune" if steps else "base"
    writer.write(evaluation(stage, seed, steps, int(40 * rate)))
    numbers = {
        "train/critic_loss": 10.0 ** (-steps / 500),
        "train/kl": float("nan"),
        "time/env_steps_per_s": 5000.0 + steps if steps else 90_000.0,  # fast before learning
        "time/updates_per_s": 10.0 + steps / 128,
        "episode/success": rate,
        "episode/episodes": 22.0 + steps,
    }
    writer.write(row("finetune", seed, steps, steps // 8, **numbers))


def finished(folder, **settings):
    """The folder of a finished run."""
    stopped(folder, **settings)
    (folder / "summary.json").write_text(json.dumps({"seconds": 132.4, "compile_seconds": 14.2}))
    return folder


def with_demonstrations(folder):
    """A finished run that has recorded its demonstrations."""
    finished(folder)
    (folder / "policy" / "base").mkdir(parents=True)
    facts = json.dumps({"demonstrations": DEMONSTRATIONS})
    (folder / "policy" / "base" / "policy.json").write_text(facts)
    return folder


def scored_by_return(folder, returns):
    """A run of two seeds on a task without success."""
    started(folder)
    with metrics.make_writers(["jsonl"], folder, {}) as writer:
        for seed in (0, 1):
            for steps, value in returns.items():
                numbers = {
                    "eval/return": value + 2 * seed,
                    "eval/return_std": 40.0,
                    "eval/episodes": 16,
                }
                stage = "finetune" if steps else "base"
                writer.write(row(stage, seed, steps, steps // 8, **numbers))
    return folder


class Page(HTMLParser):
    """A page: its visible text, tags, tables, figures, and every address it refers to."""

    def __init__(self, path):
        super().__init__()
        self.words = []
        self.tags = []
        self.addresses = []  # of images, videos and links
        self.references = []  # of SVG elements, within the page
        self.tables = []  # [table][row][cell] texts
        self.downloads = {}  # file name -> the rows of its CSV
        self.metas = {}
        self._hidden = False
        self._in_cell = False
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def figures(self):
        """The SVG of every figure."""
        return re.findall(r"<figure[^>]*>\s*(<svg.*?</svg>)", self.source, re.DOTALL)

    @property
    def style(self):
        return re.search(r"<style>(.*?)</style>", self.source, re.DOTALL)[1]

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._hidden = tag == "style"
        values = dict(attributes)
        self.addresses += [values[name] for name in ("src", "srcset", "href") if name in values]
        self.references += [values[name] for name in ("xlink:href",) if name in values]
        if tag == "meta" and "name" in values:
            self.metas[values["name"]] = values["content"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self._in_cell = True
        if tag == "a" and "download" in values:
            head, _, data = values["href"].partition(",")
            assert head == "data:text/csv;charset=utf-8;base64"
            text = base64.b64decode(data).decode("utf-8")
            self.downloads[values["download"]] = list(csv.reader(io.StringIO(text)))

    def handle_endtag(self, tag):
        self._hidden = False
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if not self._hidden:
            self.words.append(data)
            if self._in_cell:
                self.tables[-1][-1][-1] += data
