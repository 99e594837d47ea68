"""The host loop of a run: folder, stages, progress, metrics, checkpoints, evaluation. All numbers come from the one
compiled segment (``learner``); nothing here knows a method or a task.

A run has two stages, clone and finetune, both driven by ``_Stage``: everything but wall-clock seconds follows from its clock,
the number of segments done, so that resuming is restoring the newest checkpoint and dropping later rows.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import math
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import algorithms
from gcp_jax import mesh as mesh_lib
from gcp_jax.algorithms import bc
from gcp_jax.atomic_files import write_json
from gcp_jax.config import ConfigError, Member, RunConfig, to_dict
from gcp_jax.core import policy
from gcp_jax.core.networks import fit_normalizer
from gcp_jax.learner import (
    batch_sources,
    diagnostics,
    evaluation,
    loop,
    nonfinite,
    population,
    xla_options,
)
from gcp_jax.run import checkpoint, distributed, metrics, replay_fault, saved_policy
from gcp_jax.run import progress as progress_lib
from gcp_jax.stats.statistics import score
from gcp_jax.types import Algorithm, PyTree, Specs, Step

CLONE_STREAM = 0x636C6F6E
FORMAT = 2  # of a run folder
FREE_FIELDS = (
    "run_dir",
    "writers",
    "video",
    "checkpoint",
    "max_nonfinite_updates",
)  # may differ when a run is resumed


class RunError(RuntimeError):
    """A run that cannot start or go on; one line that says why and what to do."""


class Interrupted(RunError):
    """Stopped by a signal after saving; the same command continues."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.code = 128 + signum


class Paused(RunError):
    """Stopped where it was asked to, after saving and evaluating; the same run goes on from there."""


class TaskInterface(NamedTuple):
    """What a run needs of its environment.

    env:         vectorized chunk environment (reset, step, film, autoreset, specs)
    demonstrate: (key) -> (Step leaves [T, episodes, ...], facts: plain values)
    film:        (states [T, F, ...] of host arrays, path) -> None, writes a video; None: no videos
    """

    env: Any
    demonstrate: Callable[[jax.Array], tuple[Step, dict[str, Any]]]
    film: Callable[[PyTree, Path], None] | None


class Sizes(NamedTuple):
    """What follows from a configuration before anything is compiled."""

    specs: Specs
    rows: int  # L
    env_steps: int  # of one segment of one seed
    updates: int  # U
    segments: int
    warmup: int  # segments
    capacity: int  # T chunk rows
    evaluate: int  # segments between evaluations
    checkpoint: int  # segments between checkpoints


def run_sizes(config: RunConfig, env_specs: Any) -> Sizes:
    """Derive the sizes of finetuning. Raises ValueError where they do not fit together."""
    fine, chunk = config.finetune, config.policy.chunk
    if chunk > env_specs.horizon:
        raise ConfigError(
            f"policy.chunk is {chunk}, longer than an episode of {env_specs.name} ({env_specs.horizon} steps)."
        )
    shared = {
        "finetune.envs": fine.envs,
        "finetune.reset_pool (or a quarter of finetune.envs)": fine.reset_pool_size,
        "pretrain.batch_size": config.pretrain.batch_size,
        "evaluation.episodes": config.evaluation.episodes,
        **(
            {}
            if algorithms.on_policy(config.algorithm_module)
            else {"finetune.batch_size": fine.batch_size}
        ),
    }
    for name, size in shared.items():
        mesh_lib.require_divisible(name, size, config.data_parallel)
    env_steps = fine.envs * fine.unroll_chunks * chunk
    once = algorithms.on_policy(config.algorithm_module)
    updates = max(round(fine.utd * env_steps), 1)
    if once:
        needs = config.algorithm_module.rollout_needs(config.algorithm_config)
        updates = needs["epochs"] * needs["minibatches"]
    capacity = (
        max(fine.capacity // (fine.envs * chunk) // fine.unroll_chunks, 2) * fine.unroll_chunks
    )
    if fine.batch_size > fine.capacity and not once:
        raise ConfigError(
            f"finetune.batch_size is {fine.batch_size}, more than the replay keeps (finetune.capacity={fine.capacity} env steps)."
        )
    if fine.learning_starts >= fine.env_steps and not once:
        raise ConfigError(
            f"finetune.learning_starts is {fine.learning_starts}, not below finetune.env_steps ({fine.env_steps}): nothing would be learnt."
        )
    return Sizes(
        specs=Specs(env_specs.obs_dim, env_specs.action_dim, chunk),
        rows=fine.unroll_chunks,
        env_steps=env_steps,
        updates=updates,
        segments=-(-fine.env_steps // env_steps),
        warmup=0 if once else -(-fine.learning_starts // env_steps),
        capacity=capacity,
        evaluate=max(round(config.evaluation.every / env_steps), 1),
        checkpoint=max(round(config.checkpoint.every / env_steps), 1),
    )


def build_algorithm(
    config: RunConfig,
    base: policy.Policy,
    size: Sizes,
    demonstrations: batch_sources.Windows | None = None,
    values: Mapping[str, Any] | None = None,
) -> Algorithm:
    """The configured finetuning method over its source; ``demonstrations`` are needed where ``demo_fraction`` is positive.
    values: those of one member of a population, traced."""
    module, settings, fine = (
        config.algorithm_module,
        population.config_of_member(config, values or {}),
        config.finetune,
    )
    if algorithms.on_policy(module):
        _refuse_demonstrations(config, remembers=True)
        source = batch_sources.on_policy(
            rows=size.rows, columns=fine.envs, **module.rollout_needs(settings)
        )
        return module.make(settings, base, source)
    needs = algorithms.replay_needs(module, settings)
    _refuse_demonstrations(config, remembers=bool(needs.get("aligned")))
    borrowed = round(fine.demo_fraction * fine.batch_size)
    own = fine.batch_size - borrowed
    source = batch_sources.replay(
        capacity=size.capacity, batch_size=own, updates=size.updates, **needs
    )
    if demonstrations is not None:
        given = batch_sources.dataset(
            demonstrations, batch_size=borrowed, updates=size.updates, gamma=needs["gamma"]
        )
        source = batch_sources.mix_sources(source, given)
    return module.make(settings, base, source)


def _refuse_demonstrations(config: RunConfig, *, remembers: bool) -> None:
    """Raise ConfigError where ``demo_fraction`` cannot be had. remembers: the method learns from extras of its own acting."""
    fine, name = config.finetune, config.algorithm["name"]
    if not fine.demo_fraction:
        return
    if remembers:
        raise ConfigError(
            f"finetune.demo_fraction is {fine.demo_fraction}, but {name} learns from what it remembers of its own acting, "
            "which demonstrations do not have; it must be 0."
        )
    borrowed = round(fine.demo_fraction * fine.batch_size)
    parts = (fine.batch_size - borrowed, borrowed)
    if any(part < 1 or part % config.data_parallel for part in parts):
        raise ConfigError(
            f"finetune.demo_fraction is {fine.demo_fraction}, which makes a batch of {parts[0]} replayed and {parts[1]} "
            f"demonstrated transitions; both must be positive multiples of data ({config.data_parallel})."
        )


class Cadence(NamedTuple):
    """When things happen in a stage, in segments; every counter follows from the clock."""

    name: str
    segments: int
    env_steps: int  # of a segment of one seed; 0 when cloning
    updates: int  # of a segment
    warmup: int
    evaluate: int  # segments between evaluations
    checkpoint: int  # segments between checkpoints

    @property
    def unit(self) -> str:
        """What progress is counted in."""
        return "env steps" if self.env_steps else "updates"

    def counters(self, clock: int) -> dict[str, int]:
        """Environment steps (of one seed) and updates after ``clock`` segments; Python integers, beyond 2³¹."""
        return {
            "env_steps": clock * self.env_steps,
            "updates": max(clock - self.warmup, 0) * self.updates,
        }

    def done(self, clock: int) -> int:
        """Progress in ``unit``."""
        return self.counters(clock)[self.unit.replace(" ", "_")]


def cadences(config: RunConfig, size: Sizes) -> tuple[Cadence, Cadence]:
    """Of cloning and of finetuning."""
    pre = config.pretrain
    clone = Cadence(
        name="pretrain",
        segments=-(-pre.updates // pre.evaluate_every),
        env_steps=0,
        updates=pre.evaluate_every,
        warmup=0,
        evaluate=1,
        checkpoint=max(round(config.checkpoint.every / pre.evaluate_every), 1),
    )
    return clone, Cadence(
        "finetune",
        size.segments,
        size.env_steps,
        size.updates,
        size.warmup,
        size.evaluate,
        size.checkpoint,
    )


class _Stage(NamedTuple):
    """One stage of a run: its rhythm, its compiled loop, what it starts from and when it may stop early."""

    cadence: Cadence
    learner: loop.Learner
    members: list[Member]
    values: dict[str, Any]
    pretrained: PyTree
    evaluated: list[Member]
    eval_policy: Callable[..., Any]  # (deployed, obs, key) -> chunks
    export: Callable[[Any], PyTree]  # (Train) -> deployed
    stop: Callable[[list[dict[str, Any]]], bool]
    method: Callable[[Mapping[str, Any]], Algorithm]  # of a member, by its values

    def init(self) -> Any:
        """The initial Train."""
        seeds = np.asarray([member.seed for member in self.members], np.int32)
        return self.learner.init(seeds, jax.device_get(self.pretrained), self.values)

    def restore(self, saved: checkpoint.Checkpoints) -> tuple[Any, dict[str, Any]] | None:
        """(Train, what was kept of the host) of the newest checkpoint; None where there is none."""
        return saved.restore(self.init, mesh_lib.shardings(self.learner.mesh, self.learner.layout))


class Training:
    """One run in its folder. ``run()`` does whatever is left of it and returns the summary."""

    def __init__(self, config: RunConfig, task: TaskInterface, folder: Path, command: str) -> None:
        self.config, self.task, self.folder = config, task, folder
        self.size = run_sizes(config, task.env.specs)
        self.clone, self.finetune = cadences(config, self.size)
        self.seeds = [Member(seed, {}) for seed in config.all_seeds]
        self.score_name = "return" if task.env.specs.by_return else "success"
        self.compile_seconds = self.seconds_before = self.train_seconds = 0.0
        self.began = time.monotonic()
        self._evaluate: dict[Any, Any] = {}
        self._skipped: Counter[str] = Counter()
        self._fault = ""
        self._signal = self.until = 0
        self.command = command
        mesh_lib.make_mesh(
            len(config.members), data=config.data_parallel
        )  # refuses devices that are not there
        if config.population:
            population.check_population(config, self.dry)
        if config.pretrain.artifact and not (folder / "policy" / "base").exists():
            self._check_fits(config.pretrain.artifact)

    def run(self, until: int = 0) -> dict[str, Any]:
        """Clone (unless an artifact exists), finetune, save the policies; the summary is also ``summary.json``. until: environment
        steps of a seed after which the next evaluation pauses the run (0: none); raises Paused there."""
        self.until = until
        with distributed.process_group(), run_folder_lock(self.folder), _signals(self):
            finished = self.folder / "summary.json"
            self._open()
            if distributed.broadcast_from_first(finished.exists()):
                print(f"{self.folder} holds a finished run; nothing to do.", file=sys.stderr)
                return json.loads(finished.read_text())
            with self._writing() as self.writer:
                base, deployed = self._base()
                summary = self._finetune(base, deployed)
            if distributed.is_primary():
                write_json(finished, summary)
            return summary

    def pretrain(self) -> Path:
        """Clone only; where the policy lies. Already cloned, nothing is done."""
        with distributed.process_group(), run_folder_lock(self.folder), _signals(self):
            self._open()
            with self._writing() as self.writer:
                self._base()
        return self.folder / "policy" / "base"

    def _writing(self) -> metrics.FanOut:
        """The writers of this run, on the first host; rows later than the checkpoint to continue from are dropped, and checkpoints
        that are damaged set aside."""
        for stage in (self.clone, self.finetune):
            checkpoint.set_damaged_aside(
                self.folder / "checkpoints" / stage.name, self.folder / "damaged"
            )
        if not distributed.is_primary():
            return metrics.FanOut(())
        self._drop_late_rows()
        return metrics.writers(("jsonl", *self.config.writers), self.folder, to_dict(self.config))

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of this run, those before a restart included."""
        return self.seconds_before + time.monotonic() - self.began

    def _times(self) -> dict[str, float]:
        """Wall-clock seconds of the run, and those that compiled segments of this stage took."""
        return {"seconds": round(self.seconds, 2), "train_seconds": round(self.train_seconds, 2)}

    def _open(self) -> None:
        config = to_dict(self.config)
        facts: dict[str, Any] = {
            "command": self.command,
            "versions": package_versions(),
            "commit": git_commit(),
        }
        path = self.folder / "config.json"
        if not path.exists() and distributed.is_primary():
            if name := _foreign(self.folder):
                raise RunError(
                    f"{self.folder} holds a {name}, but no config.json: it is no run of gcp-jax, or no longer one. Choose another "
                    "--config.run_dir."
                )
            write_json(path, {"format": FORMAT, "config": config, **facts})
        distributed.wait("config.json")
        known = json.loads(path.read_text())
        if known.get("format") != FORMAT:
            raise RunError(
                f"{self.folder} holds a run of format {known.get('format')}, this version reads {FORMAT}; finish it with the version "
                "that began it, or choose another --config.run_dir."
            )
        others = {
            name: (was, facts["versions"].get(name)) for name, was in known["versions"].items()
        }
        for name, (was, now) in others.items():
            if was != now:
                print(
                    f"this run began with {name} {was}, now it is {now}: the last bits may differ",
                    file=sys.stderr,
                )
        for field, there, here in _differences(known["config"], config):
            raise RunError(
                f"{self.folder} holds a run with {field}={there!r}, not {here!r}; use the same configuration to resume it, "
                "or another --config.run_dir."
            )

    def _drop_late_rows(self) -> None:
        """Drop the rows a killed process wrote after the checkpoint this one continues from."""
        clocks = {
            c.name: checkpoint.latest(self.folder / "checkpoints" / c.name)
            for c in (self.clone, self.finetune)
        }
        if clocks["finetune"] is not None:
            keep = metrics.until("finetune", **self.finetune.counters(clocks["finetune"]))
        elif (self.folder / "policy" / "base").exists():
            keep = metrics.until("base", env_steps=0, updates=0)
        else:
            keep = metrics.until("pretrain", **self.clone.counters(clocks["pretrain"] or 0))
        for name in ("metrics.jsonl", "eval.jsonl"):
            metrics.truncate_after(self.folder / name, keep)

    # Stage 1: clone ---------------------------------------------------------------------------------------------------

    def _base(self) -> tuple[policy.Policy, PyTree]:
        """The policy to finetune: the run's own clone, or ``pretrain.artifact``."""
        given, own = self.config.pretrain.artifact, self.folder / "policy" / "base"
        if distributed.broadcast_from_first(own.exists()):
            base, deployed, *_ = saved_policy.load_saved_policy(own)
        elif given:
            base, deployed, facts, _ = saved_policy.load_saved_policy(given)
            if distributed.is_primary():
                known = {
                    k: v
                    for k, v in facts.items()
                    if k in ("env", self.score_name, "demonstrations")
                }
                saved_policy.save_policy(own, policy=base, deployed=deployed, facts=known)
        else:
            base, deployed = self._clone(own)
        return base, deployed

    def _check_fits(self, path: str) -> None:
        base, deployed, facts, _ = saved_policy.check_saved_policy(path)
        if deployed.keys() != saved_policy.BASE_KEYS:
            raise RunError(
                f"{path} is more than a cloned policy (it also holds {', '.join(sorted(deployed.keys() - saved_policy.BASE_KEYS))}); "
                "finetuning starts from a plain one, such as RUN/policy/base."
            )
        there, here = (dict(env).get("name") for env in (facts.get("env") or {}, self.config.env))
        if there not in (here, None):
            raise RunError(
                f"{path} is a policy for {there}, but this run is on {here}; choose its environment."
            )
        if base.specs != self.size.specs:
            raise RunError(
                f"{path} is a policy for {base.specs}, but this run needs {self.size.specs}; choose its environment."
            )

    def _cloning(self) -> tuple[policy.Policy, _Stage, dict[str, Any]]:
        """The policy that is cloned, the stage, and the facts of the demonstrations."""
        pre, form = self.config.pretrain, self.config.policy
        print(f"cloning {self.config.demonstrations.episodes} demonstrations", file=sys.stderr)
        data, facts = self._demonstrations()
        if pre.rescale_actions:
            form = policy.rescaled_to_actions(
                form, np.asarray(data.steps.action)[data.steps.executed]
            )
        base = policy.make_policy(form, self.size.specs)
        enough = self._enough(data)
        weight = jnp.asarray(data.steps.executed.reshape(-1), jnp.float32)
        normalizer = fit_normalizer(
            jnp.asarray(data.steps.obs.reshape(-1, self.size.specs.obs_dim)), weight
        )
        source = batch_sources.dataset(
            data, batch_size=pre.batch_size, updates=pre.evaluate_every, gamma=1.0
        )
        algorithm = bc.make(pre.algorithm, base, source)
        stage = _Stage(
            cadence=self.clone,
            learner=loop.build_learner(
                algorithm,
                self.size.specs,
                mesh=mesh_lib.make_mesh(1, data=self.config.data_parallel),
                seeds=1,
            ),
            members=self.seeds[:1],
            values={},
            pretrained={"normalizer": normalizer},
            evaluated=self.seeds,
            eval_policy=algorithm.eval_policy,
            export=lambda train: algorithm.export(train.state),
            stop=lambda rows: _mean_score(rows) >= enough,
            method=lambda values: algorithm,
        )
        return base, stage, facts

    def _clone(self, own: Path) -> tuple[policy.Policy, PyTree]:
        pre = self.config.pretrain
        base, stage, facts = self._cloning()
        deployed, rows = self._loop(stage)
        deployed = jax.tree.map(lambda x: x[0], deployed)
        if not stage.stop(rows) and pre.stop_at_success < 1.0:
            print(
                f"cloning ended at {self._told(rows)}, below pretrain.stop_at_success={pre.stop_at_success:.0%}",
                file=sys.stderr,
            )
        self._save_policy(own, self.config, base, deployed, rows, demonstrations=facts)
        return base, deployed

    def _enough(self, demonstrations: batch_sources.Windows) -> float:
        """The score at which cloning is cut: ``stop_at_success`` itself, or that share of the demonstrations' mean return."""
        share = self.config.pretrain.stop_at_success
        if self.score_name == "success" or share == 1.0:
            return share if self.score_name == "success" else math.inf
        steps = demonstrations.steps
        mean = float(np.sum(np.where(steps.executed, steps.reward, 0.0))) / steps.reward.shape[1]
        if mean <= 0:
            raise RunError(
                f"pretrain.stop_at_success is {share}, a share of the demonstrations' mean return, which is {mean:.1f}: it must be "
                "positive for that; 1.0 clones to the end."
            )
        return share * mean

    def _told(self, rows: list[dict[str, Any]]) -> str:
        mean = _mean_score(rows)
        return f"{mean:.1%} success" if self.score_name == "success" else f"return {mean:,.1f}"

    def _demonstrations(self) -> tuple[batch_sources.Windows, dict[str, Any]]:
        """The configured demonstrations, the same in every stage, and what to tell of them."""
        key = jax.random.fold_in(jax.random.key(CLONE_STREAM), self.config.seed)
        steps, facts = self.task.demonstrate(key)
        print(f"demonstrations: {facts}", file=sys.stderr)
        return batch_sources.chunk_windows(
            distributed.broadcast_from_first(steps), self.config.policy.chunk
        ), facts

    def _borrowed(self) -> batch_sources.Windows | None:
        """The demonstrations that finetuning learns from as well."""
        return self._demonstrations()[0] if self.config.finetune.demo_fraction else None

    # Stage 2: finetune ------------------------------------------------------------------------------------------------

    def _finetune(self, base: policy.Policy, deployed: PyTree) -> dict[str, Any]:
        demonstrations = self._borrowed()
        stage = self._finetuning(base, deployed, demonstrations)
        before = self._evaluate_base(base, deployed)
        final, rows = self._loop(stage)
        for index, (member, row) in enumerate(zip(stage.members, rows, strict=True)):
            alone, own = self.config.of(member.values), _take_index(final, index)
            own = own["policy"] if self.config.population else own
            eval_policy = build_algorithm(alone, base, self.size, demonstrations).eval_policy
            self._save_policy(
                self.folder / "policy" / metrics.member(row), alone, base, own, [row], eval_policy
            )
        scores: dict[str, list[float]] = {}
        for member, row in zip(stage.members, rows, strict=True):
            scores.setdefault(member.label, []).append(score(row))
        return {
            f"base_{self.score_name}": _mean_score(before),
            self.score_name: _mean_score(rows),
            f"{self.score_name}_per_seed": scores if self.config.population else scores[""],
            **self.finetune.counters(self.finetune.segments),
            **({"given_up": sorted(self._given_up)} if self._given_up else {}),
            "seconds": round(self.seconds, 1),
            "compile_seconds": round(self.compile_seconds, 1),
            "run_dir": str(self.folder),
        }

    def _finetuning(
        self,
        base: policy.Policy,
        deployed: PyTree,
        demonstrations: batch_sources.Windows | None = None,
    ) -> _Stage:
        """The stage; every member of a population has the method its own values make."""
        config, size, fine = self.config, self.size, self.config.finetune

        def member(values: Mapping[str, Any]) -> tuple[Algorithm, loop.Diagnose]:
            algorithm = build_algorithm(config, base, size, demonstrations, values)
            return algorithm, diagnostics.make(
                algorithm, base, population.config_of_member(config, values).gamma
            )

        def of_members(deployed: PyTree, *rest: Any) -> Any:
            own, _ = member(deployed["values"])
            return own.eval_policy(deployed["policy"], *rest)

        def export(train: Any) -> PyTree:
            policies = algorithm.export(train.state)
            return {"policy": policies, "values": train.values} if config.population else policies

        algorithm, diagnose = member({})
        return _Stage(
            cadence=self.finetune,
            learner=loop.build_learner(
                algorithm,
                size.specs,
                mesh=mesh_lib.make_mesh(len(config.members), data=config.data_parallel),
                seeds=len(config.members),
                collection=loop.CollectConfig(
                    self.task.env, fine.envs, size.rows, fine.reset_pool_size, size.warmup
                ),
                diagnose=diagnose,
                vary=member if config.population else None,
            ),
            members=config.members,
            values=population.member_values(config),
            pretrained=deployed,
            evaluated=config.members,
            eval_policy=of_members if config.population else algorithm.eval_policy,
            export=export,
            stop=lambda rows: False,
            method=lambda values: member(values)[0],
        )

    def dry(self) -> Any:
        """The first segment of finetuning, from an untrained policy: to be traced for its shapes."""
        base = policy.make_policy(self.config.policy, self.size.specs)
        deployed = base.untrained(jax.random.key(0))
        stage = self._finetuning(base, deployed)
        seeds = jnp.asarray([member.seed for member in stage.members], jnp.int32)
        return stage.learner.segment(stage.learner.init(seeds, deployed, stage.values))

    def _evaluate_base(self, base: policy.Policy, deployed: PyTree) -> list[dict[str, Any]]:
        path = self.folder / "eval.jsonl"
        known = [row for row in metrics.rows(path) if row["stage"] == "base"]
        if distributed.broadcast_from_first(len(known) == len(self.seeds)):
            return known
        with progress_lib.Progress(
            1, distributed.with_host_prefix("base"), unit="evaluation", score_name=self.score_name
        ) as shown:
            deployed = jax.tree.map(lambda x: x[None], deployed)
            rows = self._evaluated(
                base.eval_policy, deployed, self.seeds, shown, self._film_to("before")
            )
            self.compile_seconds += shown.compile_seconds
        rows = [
            {"stage": "base", "env_steps": 0, "updates": 0, **self._times(), **row} for row in rows
        ]
        for row in rows:
            self.writer.write(row)
        print(f"base policy: {self._told(rows)}", file=sys.stderr)
        return rows

    # The loop both stages share ---------------------------------------------------------------------------------------

    def _loop(self, stage: _Stage) -> tuple[PyTree, list[dict[str, Any]]]:
        """Run a stage from its newest checkpoint to its end: the deployed policies [S, ...] and the last evaluation."""
        cadence, self.train_seconds, self._skipped = stage.cadence, 0.0, Counter()
        saved = checkpoint.Checkpoints(
            self.folder / "checkpoints" / cadence.name, keep=self.config.checkpoint.keep
        )
        restored = stage.restore(saved)
        clock, rows = self._resume(cadence, restored)
        total, start = cadence.done(cadence.segments), cadence.done(clock)
        name = distributed.with_host_prefix(cadence.name)
        with progress_lib.Progress(
            total, name, unit=cadence.unit, start=start, score_name=self.score_name
        ) as shown:
            train, segment = self._compiled(stage, restored, shown)
            while clock < cadence.segments and not (rows and stage.stop(rows)):
                began = time.monotonic()
                train, numbers = segment(train)
                clock += 1
                found = distributed.fetch(numbers)
                self.train_seconds += time.monotonic() - began
                self._signal = distributed.largest(self._signal)
                self._log(cadence, stage.members, clock, found, time.monotonic() - began, shown)
                self._stop_if_given_up(stage.members)
                last, pause = clock == cadence.segments, False
                if last or clock % cadence.evaluate == 0:
                    rows = self._evaluate_at(stage, clock, train, shown)
                    pause = not last and self._pauses(cadence, clock)
                if (
                    last
                    or pause
                    or clock % cadence.checkpoint == 0
                    or self._signal
                    or (rows and stage.stop(rows))
                ):
                    saved.save(clock, train, self._standing(rows, shown))
                if pause:
                    raise Paused(f"paused at {cadence.done(clock)} {cadence.unit}.")
                if self._signal:
                    where = f"{cadence.done(clock)} {cadence.unit} of {cadence.name}"
                    reason = signal.Signals(self._signal).name
                    raise Interrupted(
                        f"stopped by {reason}; saved at {where}. The same command continues from there.",
                        self._signal,
                    )
            self.compile_seconds += shown.compile_seconds
        saved.close()
        return distributed.fetch(stage.export(train)), rows

    def _pauses(self, cadence: Cadence, clock: int) -> bool:
        """Is this the evaluation at which finetuning was asked to pause?"""
        steps = cadence.env_steps
        return (
            bool(self.until and steps)
            and clock * steps >= self.until > (clock - cadence.evaluate) * steps
        )

    def _resume(
        self, cadence: Cadence, found: tuple[Any, dict[str, Any]] | None
    ) -> tuple[int, list[dict[str, Any]]]:
        """The clock and the last evaluation to go on from."""
        if found is None:
            return 0, []
        train, host = found
        clock = int(train.clock)
        self.seconds_before = max(self.seconds_before, host["seconds"])
        self.train_seconds = host["train_seconds"]
        self._skipped = Counter(host["skipped"])
        self.compile_seconds = max(self.compile_seconds, host["compile_seconds"])
        total = cadence.done(cadence.segments)
        print(
            f"resuming {cadence.name} at {cadence.done(clock)} of {total} {cadence.unit}",
            file=sys.stderr,
        )
        return clock, host["rows"]

    def _compiled(
        self, stage: _Stage, found: tuple[Any, Any] | None, shown: Any
    ) -> tuple[Any, Callable[..., Any]]:
        """The state to start from and the compiled segment."""
        if found is None:
            with shown.compiling(f"{stage.cadence.name} initial state"):
                train = jax.block_until_ready(stage.init())
        else:
            train = found[0]
        with shown.compiling(f"{stage.cadence.name} segment"):
            return train, stage.learner.compile(train).segment

    def _evaluate_at(
        self, stage: _Stage, clock: int, train: Any, shown: Any
    ) -> list[dict[str, Any]]:
        cadence = stage.cadence
        film = (
            self._film_to("after")
            if clock == cadence.segments and cadence.name == "finetune"
            else None
        )
        rows = self._evaluated(stage.eval_policy, stage.export(train), stage.evaluated, shown, film)
        rows = [
            {"stage": cadence.name, **cadence.counters(clock), **self._times(), **row}
            for row in rows
        ]
        for row in rows:
            self.writer.write(row)
        shown.update(cadence.done(clock), evaluated=_mean_score(rows))
        return rows

    def _standing(self, rows: list[dict[str, Any]], shown: Any) -> dict[str, Any]:
        """What a checkpoint keeps of the host."""
        compiled = self.compile_seconds + shown.compile_seconds
        times = {
            "seconds": self.seconds,
            "train_seconds": self.train_seconds,
            "compile_seconds": compiled,
        }
        return {"rows": rows, "skipped": dict(self._skipped), **times}

    def _log(
        self,
        cadence: Cadence,
        members: list[Member],
        clock: int,
        numbers: Mapping[str, np.ndarray],
        seconds: float,
        shown: Any,
    ) -> None:
        """Write one row per seed, note what was not finite, and show where the stage stands."""
        trained = clock > cadence.warmup
        speeds = {"time/env_steps_per_s": cadence.env_steps * len(members) / seconds}
        speeds["time/updates_per_s"] = cadence.updates * len(members) / seconds * trained
        scores: list[float] = []
        for index, member in enumerate(members):
            row: dict[str, Any] = {
                "stage": cadence.name,
                **_member_columns(member),
                **cadence.counters(clock),
                **self._times(),
            }
            row |= _episode_means(
                {k: float(v[index]) for k, v in numbers.items() if k.startswith("episode/")}
            )
            row |= {
                k: float(v[index]) for k, v in numbers.items() if k.startswith("train/") and trained
            }
            found = nonfinite.pop_nonfinite(row, diagnostics.MAY_BE_MISSING)
            if found.skipped:
                self._note(cadence, clock, index, metrics.member(row), found)
            scores += (
                [row[f"episode/{self.score_name}"]] if f"episode/{self.score_name}" in row else []
            )
            self.writer.write(row | speeds)
        shown.update(
            cadence.done(clock),
            training=float(np.mean(scores)) if scores else None,
            env_steps_per_s=speeds["time/env_steps_per_s"] if cadence.env_steps else None,
            updates_per_s=speeds["time/updates_per_s"],
        )

    def _note(
        self, cadence: Cadence, clock: int, index: int, who: str, found: nonfinite.NonfiniteUpdates
    ) -> None:
        """Count the updates of a member that were skipped, tell the first, and keep what shows it once more."""
        allowed, spent, first = (
            self.config.max_nonfinite_updates,
            self._spent(who),
            not self._skipped[who],
        )
        self._skipped[who] += int(found.skipped) if math.isfinite(found.skipped) else allowed + 1
        update = cadence.counters(clock - 1)["updates"] + found.first
        where = f"{found.quantity} in {cadence.name} of {who}, at update {update} ({cadence.done(clock)} {cadence.unit})"
        if first:
            self._fault = self._fault or where
            if distributed.is_primary():
                replay_fault.keep(
                    self.folder,
                    {"stage": cadence.name, "clock": clock, "index": index, "told": where},
                )
        if self._spent(who) and not spent:
            print(
                f"{where}; {self._skipped[who]} updates were not finite, max_nonfinite_updates is {allowed}: it is given up",
                file=sys.stderr,
            )
        elif first:
            print(f"{where}: skipped, as up to {allowed} of its updates are", file=sys.stderr)

    def _spent(self, who: str) -> bool:
        return self._skipped[who] > self.config.max_nonfinite_updates

    @property
    def _given_up(self) -> list[str]:
        """The members of this stage that are no longer trained."""
        return [who for who in self._skipped if self._spent(who)]

    def _stop_if_given_up(self, members: list[Member]) -> None:
        """Raise RunError where no member is left to train."""
        if len(self._given_up) == len(members):
            told = self._fault or replay_fault.kept(self.folder)["told"]
            raise RunError(
                f"{told}, and {sum(self._skipped.values())} updates in all: nothing is left to train. The last checkpoint is from "
                f"before; gcp-jax debug {self.folder} shows that update. Lower the learning rates, raise the regularization, or let "
                f"more than max_nonfinite_updates={self.config.max_nonfinite_updates} pass."
            )

    def debug(self) -> dict[str, Any]:
        """Train again from the checkpoint before the first update that was not finite, and tell about it."""
        with run_folder_lock(self.folder):
            self._open()
            known = replay_fault.kept(self.folder)
            if known["stage"] == "pretrain":
                _, stage, _ = self._cloning()
            else:
                base, deployed, *_ = saved_policy.load_saved_policy(self.folder / "policy" / "base")
                stage = self._finetuning(base, deployed, self._borrowed())
            folder = self.folder / replay_fault.FOLDER
            saved = checkpoint.Checkpoints(folder / "checkpoints", keep=1)
            restored = stage.restore(saved)
            saved.close()
            train = restored[0] if restored else stage.init()
            return replay_fault.show(stage.learner, stage.method, train, known, folder)

    def _evaluated(
        self,
        eval_policy: Callable[..., Any],
        deployed: PyTree,
        members: list[Member],
        shown: Any,
        film: Callable[[PyTree], None] | None,
    ) -> list[dict[str, Any]]:
        """Evaluate deployed policies [S or 1, ...] on the start states of each member's seed; one compile for all stages."""
        count, seed = len(members), np.asarray([member.seed for member in members], np.int32)
        deployed = jax.tree.map(
            lambda x: np.broadcast_to(x, (count, *x.shape[1:])), distributed.fetch(deployed)
        )
        mesh = mesh_lib.make_mesh(count, data=self.config.data_parallel)
        placed = jax.device_put(
            (deployed, seed), mesh_lib.shardings(mesh, (mesh_lib.P("seed"), mesh_lib.P("seed")))
        )
        if (eval_policy, count) not in self._evaluate:
            build = partial(
                evaluation.build_evaluation, mesh=mesh, episodes=self.config.evaluation.episodes
            )
            program = build(eval_policy, self.task.env, chunk=self.config.policy.chunk)
            with shown.compiling("evaluation"):
                self._evaluate[eval_policy, count] = program.lower(*placed).compile(
                    xla_options.physics_options()
                )
        outcome, states = self._evaluate[eval_policy, count](*placed)
        if film is not None:
            film(_take_index(distributed.fetch(states), 0))
        rows = evaluation.eval_rows(
            distributed.fetch(outcome), seeds=[m.seed for m in members], specs=self.task.env.specs
        )
        return [
            {**row, **_member_columns(member)} for member, row in zip(members, rows, strict=True)
        ]

    def _film_to(self, name: str) -> Callable[[PyTree], None] | None:
        film = self.task.film
        if film is None or not self.config.video:
            return None
        if not distributed.is_primary():
            return lambda states: None
        return lambda states: film(states, self.folder / "report" / f"{name}.mp4")

    def _save_policy(
        self,
        path: Path,
        config: RunConfig,
        base: policy.Policy,
        deployed: PyTree,
        rows: list[dict[str, Any]],
        eval_policy: saved_policy.EvalPolicy | None = None,
        demonstrations: Mapping[str, Any] | None = None,
    ) -> None:
        facts = {
            "env": config.env,
            self.score_name: _mean_score(rows),
            "episodes": sum(row["eval/episodes"] for row in rows),
            "seeds": [row["seed"] for row in rows],
            "config": to_dict(config),
        }
        if demonstrations:
            facts["demonstrations"] = demonstrations
        if deployed.keys() != saved_policy.BASE_KEYS:
            facts["algorithm"] = config.algorithm
        if not path.exists() and distributed.is_primary():
            deployed = jax.tree.map(jnp.asarray, deployed)
            saved_policy.save_policy(
                path, policy=base, deployed=deployed, facts=facts, eval_policy=eval_policy
            )


def _member_columns(member: Member) -> dict[str, Any]:
    """What a row says of whose it is."""
    return {"seed": member.seed, **({"population": member.label} if member.label else {})}


def _take_index(tree: PyTree, index: int) -> PyTree:
    return jax.tree.map(lambda x: x[index], tree)


def _mean_score(rows: list[dict[str, Any]]) -> float:
    return float(np.mean([score(row) for row in rows]))


def _episode_means(sums: Mapping[str, float]) -> dict[str, float]:
    """Means over the episodes that ended; nothing where none did."""
    count = sums.get("episode/episodes", 0.0)
    if not count:
        return {}
    means = {"success": "successes", "return": "returns", "length": "lengths"}
    counts = {"episode/episodes": count, "episode/diverged": sums["episode/diverged"]}
    return {
        f"episode/{name}": sums[f"episode/{total}"] / count for name, total in means.items()
    } | counts


def _foreign(folder: Path) -> str:
    """What a folder without config.json holds that a run would write over; "" where that is nothing. The rows of an adopted clone
    are no one else's."""
    for name in ("metrics.jsonl", "eval.jsonl"):
        path = folder / name
        try:
            found = metrics.rows(path)
        except ValueError:
            return name
        if not all("stage" in row for row in found) or (
            not found and path.exists() and path.stat().st_size
        ):
            return name
    return next(
        (name for name in ("checkpoints", "report", "summary.json") if (folder / name).exists()), ""
    )


def _differences(
    there: Mapping[str, Any], here: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """(field, there, here) wherever two configurations differ in a field that shapes the run."""
    for name in sorted({*there, *here}):
        one, other = there.get(name), here.get(name)
        if not prefix and name in FREE_FIELDS:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != json.loads(json.dumps(other)):
            yield f"{prefix}{name}", one, other


def config_hash(config: RunConfig) -> str:
    """The hash of what shapes a run's numbers, by which its folder is called where none is named."""
    content = {name: value for name, value in to_dict(config).items() if name not in FREE_FIELDS}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:10]


@contextlib.contextmanager
def run_folder_lock(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Hold the run folder against a second process; the first host holds it for all. Raises RunError where it is held."""
    if not distributed.is_primary():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / name, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"{folder} is in use by another process; wait for it or choose another --config.run_dir."
            ) from None
        yield


@contextlib.contextmanager
def _signals(training: Training) -> Iterator[None]:
    """Ctrl-C and SIGTERM ask for a checkpoint at the next segment; a second Ctrl-C stops at once."""

    def ask(signum: int, frame: Any) -> None:
        if training._signal:
            raise KeyboardInterrupt
        training._signal = signum
        print("saving at the end of this segment …", file=sys.stderr)

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def package_versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    packages = (
        "jax",
        "jaxlib",
        "flax",
        "optax",
        "orbax-checkpoint",
        "mujoco",
        "mujoco-mjx",
        "numpy",
    )
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {"python": sys.version.split()[0], **found, "device": jax.devices()[0].device_kind}


def git_commit() -> str | None:
    """The git commit of this source tree; None outside a checkout."""
    try:
        where = Path(__file__).parent
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(
            command, cwd=where, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
