"""Which runs of a sweep to do next: all, the best of successive halving, or Optuna's proposals.

Every scheduler can resume from the run folders (and Optuna's journal): the launcher keeps no state
of its own.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gcp_jax.atomic_files import write_text
from gcp_jax.config import ConfigError
from gcp_jax.launch.axes import Choice, Point, UniformRange
from gcp_jax.launch.expand import RunSpec, expand, list_points
from gcp_jax.launch.launcher import Request, Scheduler, is_finished, run_folder
from gcp_jax.launch.manifest import add_runs
from gcp_jax.launch.spec import Halving, Search, Sweep
from gcp_jax.launch.worker import JobResult
from gcp_jax.report.read import eval_rows
from gcp_jax.stats.eval_rows import score

DROPPED = "dropped.txt"  # in the folder of a run that successive halving stopped


def make_scheduler(sweep: Sweep, runs: Sequence[RunSpec], folder: Path) -> Scheduler:
    """Return the scheduler a sweep asks for.

    Args:
      sweep: the sweep.
      runs: all its runs; not used by a search, which makes its own.
      folder: the sweep's folder.
    """
    if sweep.search:
        return SearchScheduler(sweep, sweep.search, folder)
    if sweep.halving:
        return HalvingScheduler(sweep.halving, runs, folder)
    return AllRunsScheduler(runs)


def check_packages(sweep: Sweep) -> None:
    """Raise ConfigError if a search lacks its package."""
    if sweep.search and importlib.util.find_spec("optuna") is None:
        raise ConfigError("a search needs Optuna: pip install 'gcp-jax[search]'.")


class AllRunsScheduler:
    """All runs of a sweep, to their ends."""

    def __init__(self, runs: Sequence[RunSpec]) -> None:
        self.runs = runs

    def start(self) -> list[Request]:
        """Return every run."""
        return [(run, 0) for run in self.runs]

    def after(self, run: RunSpec, result: JobResult) -> list[Request]:
        """Return nothing."""
        return []


class HalvingScheduler:
    """Successive halving, rung by rung.

    A rung is decided only when every run has reached it, so the choice does not depend on
    wall-clock speed. A run that failed ranks last.
    """

    def __init__(self, halving: Halving, runs: Sequence[RunSpec], folder: Path) -> None:
        self._halving = halving
        self._folder = folder
        self._rung = 0  # index of the rung that is being decided
        self._candidates = list(runs)
        self._awaited: set[str] = set()  # ids of runs that have not reached the rung

    def start(self) -> list[Request]:
        """Return the runs of the first rung that some run has not reached."""
        return self._next_requests()

    def after(self, run: RunSpec, result: JobResult) -> list[Request]:
        """Return the runs of the next rung, once all have reached this one."""
        self._awaited.discard(run.id)
        if self._awaited or self._rung == len(self._halving.rungs):
            return []
        self._drop_worst()
        return self._next_requests()

    def _next_requests(self) -> list[Request]:
        rungs = self._halving.rungs
        while self._rung < len(rungs):
            below = [run for run in self._candidates if self._must_reach_rung(run)]
            self._awaited = {run.id for run in below}
            if below:
                return [(run, rungs[self._rung]) for run in below]
            self._drop_worst()
        return [(run, 0) for run in self._candidates]

    def _must_reach_rung(self, run: RunSpec) -> bool:
        return self._score(run) is None and not (self._run_folder(run) / DROPPED).exists()

    def _drop_worst(self) -> None:
        """Keep the best 1/keep of the candidates, and mark the folders of the others."""
        rung = self._halving.rungs[self._rung]
        ranked = sorted(self._candidates, key=self._rank_key, reverse=True)
        count = max(len(ranked) // self._halving.keep, 1)
        kept = ranked[:count]
        for place, run in enumerate(ranked, start=1):
            if place <= count or is_finished(self._run_folder(run)):
                continue
            write_text(
                self._run_folder(run) / DROPPED,
                f"dropped at {rung:,} env steps: place {place} of {len(ranked)}, "
                f"the first {count} continued\n",
            )
        self._candidates = kept
        self._rung += 1

    def _rank_key(self, run: RunSpec) -> float:
        run_score = self._score(run)
        return float("-inf") if run_score is None else run_score

    def _score(self, run: RunSpec) -> float | None:
        """Return the mean score at the first evaluation at or after the rung; None before it."""
        rung = self._halving.rungs[self._rung]
        reached = [row for row in _finetune_rows(self._folder, run) if row["env_steps"] >= rung]
        if not reached:
            return None
        first = min(row["env_steps"] for row in reached)
        scores = [score(row) for row in reached if row["env_steps"] == first]
        return sum(scores) / len(scores)

    def _run_folder(self, run: RunSpec) -> Path:
        return run_folder(self._folder, run.id)


class SearchScheduler:
    """Points proposed by Optuna, a few at a time. ``optuna.journal`` holds every trial."""

    def __init__(self, sweep: Sweep, search: Search, folder: Path) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        journal = folder / "optuna.journal"
        self._optuna = optuna
        self._sweep = sweep
        self._search = search
        self._folder = folder
        try:
            self._study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal))),
                study_name="sweep",
                direction="maximize",
                load_if_exists=True,
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{journal} is damaged ({' '.join(str(error).split())}); restore it, or choose "
                "another --run_dir."
            ) from error
        self._awaited: dict[int, set[str]] = {}  # by trial, ids of runs that have not ended
        self._runs: dict[int, list[RunSpec]] = {}  # by trial

    def start(self) -> list[Request]:
        """Return the runs of trials that an earlier launcher left open, and of new trials."""
        running = self._optuna.trial.TrialState.RUNNING
        requests: list[Request] = []
        for trial in self._study.get_trials(states=(running,)):
            requests += self._open_trial(trial.number, trial.user_attrs["point"])
        return requests + self._new_trials()

    def after(self, run: RunSpec, result: JobResult) -> list[Request]:
        """Return the runs of a new trial for each trial that has ended."""
        for number, awaited in list(self._awaited.items()):
            awaited.discard(run.id)
            self._close_trial(number)
        return self._new_trials()

    def _new_trials(self) -> list[Request]:
        """Open trials until ``parallel`` are open or ``trials`` have been proposed."""
        requests: list[Request] = []
        while len(self._awaited) < self._search.parallel:
            proposed = len(self._study.trials)
            if proposed >= self._search.trials:
                break
            self._study.sampler = self._sampler(proposed)
            trial = self._study.ask()
            point = {name: _suggest(trial, name, kind) for name, kind in self._search.space.items()}
            trial.set_user_attr("point", point)
            requests += self._open_trial(trial.number, point)
        return requests

    def _open_trial(self, number: int, point: Point) -> list[Request]:
        """Return the unfinished runs of a trial; close it at once if there are none."""
        runs: list[RunSpec] = []
        for base in list_points(self._sweep):
            runs += expand(self._sweep, base | point)
        add_runs(runs, self._folder)
        unfinished = [run for run in runs if not self._is_finished(run)]
        self._runs[number] = runs
        self._awaited[number] = {run.id for run in unfinished}
        self._close_trial(number)
        return [(run, 0) for run in unfinished]

    def _close_trial(self, number: int) -> None:
        """Report the mean score of a trial whose runs have ended; it failed if none finished."""
        if self._awaited.get(number) != set():
            return
        del self._awaited[number]
        scores: list[float] = []
        for run in self._runs[number]:
            if self._is_finished(run):
                scores += _final_scores(self._folder, run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if scores:
                self._study.tell(number, sum(scores) / len(scores), skip_if_finished=True)
            else:
                failed = self._optuna.trial.TrialState.FAIL
                self._study.tell(number, state=failed, skip_if_finished=True)

    def _is_finished(self, run: RunSpec) -> bool:
        return is_finished(run_folder(self._folder, run.id))

    def _sampler(self, trial: int) -> Any:
        """Return a sampler seeded by the trial's number: a resumed search proposes the same."""
        samplers = self._optuna.samplers
        classes = {
            "tpe": samplers.TPESampler,
            "gp": samplers.GPSampler,
            "random": samplers.RandomSampler,
        }
        return classes[self._search.sampler](seed=self._search.seed * 100_003 + trial)


def _suggest(trial: Any, name: str, kind: UniformRange | Choice) -> Any:
    if isinstance(kind, Choice):
        return trial.suggest_categorical(name, kind.values)
    if kind.whole:
        return trial.suggest_int(name, int(kind.low), int(kind.high), log=kind.log)
    return float(f"{trial.suggest_float(name, kind.low, kind.high, log=kind.log):.6g}")


def _finetune_rows(folder: Path, run: RunSpec) -> list[dict[str, Any]]:
    rows = eval_rows(run_folder(folder, run.id) / "eval.jsonl")
    return [row for row in rows if row["stage"] == "finetune"]


def _final_scores(folder: Path, run: RunSpec) -> list[float]:
    rows = _finetune_rows(folder, run)
    return [score(row) for row in rows if row["env_steps"] == rows[-1]["env_steps"]]
