"""What a sweep runs next: all of it, the survivors of successive halving, or what Optuna asks for. All three are resumed from the
runs' folders (and Optuna's journal): nothing is held in the launcher."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gcp_jax.atomic_files import write_text
from gcp_jax.config import ConfigError
from gcp_jax.launch import spec as sweeps
from gcp_jax.launch.axes import Choice, Point, UniformRange
from gcp_jax.launch.launcher import Everything, Scheduler, finished, folder_of, register
from gcp_jax.launch.spec import Halving, RunSpec, Search, Sweep
from gcp_jax.launch.worker import JobResult
from gcp_jax.run import metrics
from gcp_jax.stats.statistics import score

Wanted = list[tuple[RunSpec, int]]


def make(sweep: Sweep, runs: Sequence[RunSpec], folder: Path) -> Scheduler:
    """The plan that a sweep asks for; runs: all of them, where it is no search."""
    if sweep.search:
        return Searched(sweep, sweep.search, folder)
    return Halved(sweep.halving, runs, folder) if sweep.halving else Everything(runs)


class Halved:
    """Successive halving, rung by rung: nobody goes on before the last has come to the rung, so that who goes on does not depend on
    who was quick. A run that failed is the worst of its rung."""

    def __init__(self, halving: Halving, runs: Sequence[RunSpec], folder: Path) -> None:
        self._halving, self._folder = halving, folder
        self._rung, self._racing, self._awaited = 0, list(runs), set[str]()

    def start(self) -> Wanted:
        """The runs of the first rung at which somebody is still awaited."""
        return self._next()

    def after(self, run: RunSpec, outcome: JobResult) -> Wanted:
        """Nothing, until the last one has come."""
        self._awaited.discard(run.id)
        if self._awaited or self._rung == len(self._halving.rungs):
            return []
        self._cut()
        return self._next()

    def _next(self) -> Wanted:
        rungs = self._halving.rungs
        while self._rung < len(rungs):
            self._awaited = {
                run.id for run in self._racing if self._score(run) is None and not self._over(run)
            }
            if self._awaited:
                return [(run, rungs[self._rung]) for run in self._racing if run.id in self._awaited]
            self._cut()
        return [(run, 0) for run in self._racing]

    def _cut(self) -> None:
        """Drop all but the best 1/keep of the rung."""
        rung = self._halving.rungs[self._rung]
        ranked = sorted(self._racing, key=self._standing, reverse=True)
        kept = ranked[: max(len(ranked) // self._halving.keep, 1)]
        for place, run in enumerate(ranked):
            if run not in kept and not finished(folder_of(self._folder, run.id)):
                text = f"dropped at {rung:,} env steps: place {place + 1} of {len(ranked)}, the first {len(kept)} went on\n"
                write_text(folder_of(self._folder, run.id) / "dropped.txt", text)
        self._racing, self._rung = kept, self._rung + 1

    def _standing(self, run: RunSpec) -> float:
        found = self._score(run)
        return float("-inf") if found is None else found

    def _score(self, run: RunSpec) -> float | None:
        """Its mean score at the first evaluation from this rung on; None before that."""
        rung = self._halving.rungs[self._rung]
        reached = [row for row in _evaluations(self._folder, run) if row["env_steps"] >= rung]
        first = min((row["env_steps"] for row in reached), default=0)
        scores = [score(row) for row in reached if row["env_steps"] == first]
        return sum(scores) / len(scores) if scores else None

    def _over(self, run: RunSpec) -> bool:
        return (folder_of(self._folder, run.id) / "dropped.txt").exists()


class Searched:
    """Points that Optuna asks for, a few at a time; ``optuna.journal`` in the sweep's folder holds every trial."""

    def __init__(self, sweep: Sweep, search: Search, folder: Path) -> None:
        try:
            import optuna
            from optuna.storages import JournalStorage
            from optuna.storages.journal import JournalFileBackend
        except ImportError as error:
            raise ConfigError("a search needs Optuna: pip install 'gcp-jax[search]'.") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        storage = JournalStorage(JournalFileBackend(str(folder / "optuna.journal")))
        self._optuna, self._sweep, self._search, self._folder = optuna, sweep, search, folder
        self._study = optuna.create_study(
            storage=storage, study_name="sweep", direction="maximize", load_if_exists=True
        )
        self._awaited: dict[int, set[str]] = {}  # runs of a trial that have not ended
        self._runs: dict[int, list[RunSpec]] = {}

    def start(self) -> Wanted:
        """The trials that a launcher before this one left open, and new ones up to ``parallel``."""
        states = self._optuna.trial.TrialState
        wanted: Wanted = []
        for trial in self._study.get_trials(states=(states.RUNNING,)):
            wanted += self._open(trial.number, trial.user_attrs["point"])
        return wanted + self._more()

    def after(self, run: RunSpec, outcome: JobResult) -> Wanted:
        """A new trial for every one that has come to its end."""
        for number, awaited in list(self._awaited.items()):
            awaited.discard(run.id)
            self._close(number)
        return self._more()

    def _more(self) -> Wanted:
        wanted: Wanted = []
        while (
            len(self._awaited) < self._search.parallel
            and len(self._study.trials) < self._search.trials
        ):
            self._study.sampler = self._sampler(len(self._study.trials))
            trial = self._study.ask()
            point = {name: _suggest(trial, name, kind) for name, kind in self._search.space.items()}
            trial.set_user_attr("point", point)
            wanted += self._open(trial.number, point)
        return wanted

    def _open(self, number: int, point: Point) -> Wanted:
        """The runs of a trial that are not finished; one whose runs are all there is closed at once."""
        runs = [
            run
            for base in sweeps.points(self._sweep)
            for run in sweeps.runs(self._sweep, {**base, **point})
        ]
        register(runs, self._folder)
        self._awaited[number] = {run.id for run in runs if not self._finished(run)}
        wanted = [(run, 0) for run in runs if run.id in self._awaited[number]]
        self._runs[number] = runs
        self._close(number)
        return wanted

    def _close(self, number: int) -> None:
        """Tell Optuna the mean score of a trial whose runs have all ended; one of which none finished has failed."""
        if self._awaited.get(number) != set():
            return
        del self._awaited[number]
        scores = [
            s
            for run in self._runs[number]
            if self._finished(run)
            for s in _final(self._folder, run)
        ]
        failed = self._optuna.trial.TrialState.FAIL
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if scores:
                self._study.tell(number, sum(scores) / len(scores), skip_if_finished=True)
            else:
                self._study.tell(number, state=failed, skip_if_finished=True)

    def _finished(self, run: RunSpec) -> bool:
        return finished(folder_of(self._folder, run.id))

    def _sampler(self, trial: int) -> Any:
        """A sampler whose randomness follows from the seed and the trial's number: resuming draws the same."""
        kinds = {"tpe": "TPESampler", "gp": "GPSampler", "random": "RandomSampler"}
        return getattr(self._optuna.samplers, kinds[self._search.sampler])(
            seed=self._search.seed * 100_003 + trial
        )


def _suggest(trial: Any, name: str, kind: UniformRange | Choice) -> Any:
    if isinstance(kind, Choice):
        return trial.suggest_categorical(name, kind.values)
    if kind.whole:
        return trial.suggest_int(name, int(kind.low), int(kind.high), log=kind.log)
    return float(f"{trial.suggest_float(name, kind.low, kind.high, log=kind.log):.6g}")


def _evaluations(folder: Path, run: RunSpec) -> list[dict[str, Any]]:
    path = folder_of(folder, run.id) / "eval.jsonl"
    return [row for row in metrics.rows(path) if row["stage"] == "finetune"]


def _final(folder: Path, run: RunSpec) -> list[float]:
    rows = _evaluations(folder, run)
    return [score(row) for row in rows if row["env_steps"] == rows[-1]["env_steps"]]
