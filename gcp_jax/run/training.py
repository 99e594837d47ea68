"""A run in its folder: clone, finetune, save the policies.

All numbers come from the compiled segments (``learner``); nothing here depends on the method or
the task.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from gcp_jax.atomic_files import write_json
from gcp_jax.config import Member, RunConfig, to_dict
from gcp_jax.core.policy import Policy, make_policy
from gcp_jax.learner import population
from gcp_jax.run import (
    checkpoint,
    distributed,
    metrics,
    replay_fault,
    run_policies,
    saved_policy,
)
from gcp_jax.run.assemble import (
    FinetuneSetup,
    assemble_finetuning,
    trace_first_segment,
)
from gcp_jax.run.cloning import load_demonstrations, set_up_cloning
from gcp_jax.run.evaluator import (
    Evaluator,
    Row,
    format_mean_score,
    mean_score,
    take_index,
)
from gcp_jax.run.finetuned_policies import FinetunedPolicies, policy_facts
from gcp_jax.run.finetuning import make_finetuning_stage, stopped_by_decay
from gcp_jax.run.folder import (
    check_folder,
    drop_late_rows,
    finished_summary,
    open_folder,
    run_folder_lock,
)
from gcp_jax.run.guard_rails import GuardSetup
from gcp_jax.run.progress import Progress
from gcp_jax.run.requirements import (
    lacks_policies,
    require_checkpoint_of_clone,
    require_fitting_policy,
    require_last_checkpoint,
    require_packages_and_devices,
    require_policies,
)
from gcp_jax.run.row_gaps import find_gaps
from gcp_jax.run.session import RunTimer, Session
from gcp_jax.run.signals import StopRequest, stop_requests
from gcp_jax.run.size_notes import size_notes
from gcp_jax.run.sizes import run_sizes, stage_cadences
from gcp_jax.run.stage import Stage, StageResult
from gcp_jax.run.stage_loop import run_stage
from gcp_jax.run.task import TaskInterface
from gcp_jax.stats.eval_rows import score
from gcp_jax.types import PyTree


class Training:
    """One run in its folder; ``run`` does whatever is left of it.

    Attributes:
      config: the run.
      task: its task.
      folder: its folder.
      command: the command line, recorded in the folder.
      sizes: the sizes of finetuning.
      cadences: when each stage evaluates, saves and ends.
    """

    def __init__(self, config: RunConfig, task: TaskInterface, folder: Path, command: str) -> None:
        """Check everything that can be checked before something is compiled.

        Raises:
          ConfigError: the configuration contradicts itself, or its population cannot vary.
          RunError: ``pretrain.saved_policy`` does not fit the run (``adopt_policy`` makes the
            configuration fit it), or the folder holds something else.
          ValueError: a size cannot be divided over the devices, or there are too few devices.
          ImportError: a package that writes metrics is missing.
        """
        check_folder(folder, config, task.inputs)
        self.config = config
        self.task = task
        self.folder = folder
        self.command = command
        require_packages_and_devices(config)
        self.sizes = run_sizes(config, task.env.specs)
        self.cadences = stage_cadences(config, self.sizes)
        if config.population:
            population.check_population(config, partial(trace_first_segment, config, task))
        if config.pretrain.saved_policy and not saved_policy.is_intact(self._base_folder):
            require_fitting_policy(config, self.sizes.specs)

    def run(self, pause_at: int = 0) -> dict[str, Any]:
        """Clone or load the base policy, finetune it, save the policies.

        Args:
          pause_at: environment steps of a seed after which the next evaluation pauses the run;
            0: never.

        Returns:
          The summary, which is also ``summary.json``.

        Raises:
          Paused: ``pause_at`` was reached.
          Interrupted: a signal asked the run to stop.
          Decayed: every member is below its base policy, and ``finetune.on_decay`` is "stop".
          RunError: the folder does not hold this run, or no member is left to train.
        """
        with self._open_folder() as stop_request:
            finished = finished_summary(self.folder)
            if distributed.broadcast_from_first(
                bool(finished) and not lacks_policies(self.folder, self.config.members)
            ):
                print(f"{self.folder} holds a finished run; nothing to do.", file=sys.stderr)
                self._print_gaps()
                return finished
            for note in size_notes(self.config, self.sizes):
                print(f"note: {note}", file=sys.stderr)
            with self._session(stop_request, pause_at) as session:
                if finished:
                    require_last_checkpoint(self.folder, self.cadences.finetune)
                policy, deployed = self._base_policy(session)
                summary = self._finetune(session, policy, deployed) | finished
            if distributed.is_primary():  # it alone saves; others may be here before it has
                require_policies(self.folder, self.config.members)
                write_json(self.folder / "summary.json", summary)
            return summary

    def pretrain(self) -> Path:
        """Clone only, unless that is done.

        Returns:
          The folder of the cloned policy.
        """
        with self._open_folder() as stop_request, self._session(stop_request) as session:
            self._base_policy(session)
        return self._base_folder

    def debug(self) -> dict[str, Any]:
        """Train again from the checkpoint before the first non-finite update, and show the update.

        Raises:
          FileNotFoundError: every update was finite.
        """
        with run_folder_lock(self.folder):
            self._open_config()
            fault = replay_fault.load_fault(self.folder)
            stage = self._stage_of_fault(fault)
            folder = self.folder / replay_fault.FOLDER
            checkpoints = checkpoint.Checkpoints(folder / "checkpoints", keep=1)
            restored = stage.restore(checkpoints)
            checkpoints.close()
            train = restored.train if restored else stage.init()
            return replay_fault.replay(stage.learner, stage.algorithm_of, train, fault, folder)

    @property
    def _base_folder(self) -> Path:
        """Where the policy before finetuning is saved."""
        return run_policies.policy_folder(self.folder, run_policies.BASE)

    @property
    def _score_name(self) -> str:
        return "return" if self.task.env.specs.by_return else "success"

    @property
    def _seeds(self) -> list[Member]:
        """A member for each seed; the base policy is evaluated on their start states."""
        return [Member(seed, {}) for seed in self.config.all_seeds]

    # Folder ------------------------------------------------------------------------------------

    def _open_config(self) -> None:
        open_folder(self.folder, self.config, self.command, self.cadences, self.task.inputs)

    @contextlib.contextmanager
    def _open_folder(self) -> Iterator[StopRequest]:
        """Hold the run's folder and record requests to stop."""
        with (
            distributed.process_group(),
            run_folder_lock(self.folder),
            stop_requests() as stop_request,
        ):
            self._open_config()
            yield stop_request

    @contextlib.contextmanager
    def _session(self, stop_request: StopRequest, pause_at: int = 0) -> Iterator[Session]:
        """Begin work on the run: drop what a killed process left, open the writers.

        Damaged checkpoints are moved aside. Rows later than the checkpoint from which the run
        resumes are dropped. Only the first host writes rows.
        """
        for cadence in self.cadences:
            checkpoint.set_damaged_aside(
                self.folder / "checkpoints" / cadence.name, self.folder / "damaged"
            )
        writer = metrics.FanOut(())
        if distributed.is_primary():
            drop_late_rows(self.folder, self.cadences)
            self._print_gaps()
            names = ("jsonl", *self.config.writers)
            writer = metrics.make_writers(names, self.folder, to_dict(self.config))
        with writer:
            yield Session(
                config=self.config,
                folder=self.folder,
                evaluator=Evaluator(self.config, self.task, self.folder),
                writer=writer,
                timer=RunTimer(),
                stop_request=stop_request,
                score_name=self._score_name,
                pause_at=pause_at,
            )

    def _print_gaps(self) -> None:
        """Say which rows of the run are no longer in its files."""
        if distributed.is_primary():
            for gap in find_gaps(self.folder):
                print(f"{gap}; they were deleted, and the report marks the gap", file=sys.stderr)

    # Base policy -------------------------------------------------------------------------------

    def _base_policy(self, session: Session) -> tuple[Policy, PyTree]:
        """The policy to finetune, and its parameters: saved before, given, or cloned now."""
        if distributed.is_primary():
            run_policies.set_damaged_aside(self.folder, run_policies.BASE)
        if distributed.broadcast_from_first(self._base_folder.exists()):
            saved = saved_policy.load_saved_policy(self._base_folder)
            return saved.policy, saved.deployed
        if self.config.pretrain.saved_policy:
            return self._adopt_saved_policy(self.config.pretrain.saved_policy)
        require_checkpoint_of_clone(self.folder)
        return self._clone(session)

    def _adopt_saved_policy(self, path: str) -> tuple[Policy, PyTree]:
        """Load ``pretrain.saved_policy`` and save it as the run's base policy.

        It is sampled as the run's configuration says.
        """
        saved = saved_policy.load_saved_policy(path)
        policy = make_policy(self.config.policy, self.sizes.specs)
        if distributed.is_primary():
            kept = ("env", self._score_name, "demonstrations")
            run_policies.save(
                self.folder,
                run_policies.BASE,
                policy,
                saved.deployed,
                {name: fact for name, fact in saved.facts.items() if name in kept},
            )
        return policy, saved.deployed

    def _clone(self, session: Session) -> tuple[Policy, PyTree]:
        setup = set_up_cloning(self.config, self.task, self.sizes, self.cadences.pretrain)
        result = run_stage(setup.stage, session)
        deployed = take_index(result.deployed, 0)
        goal = self.config.pretrain.stop_at_success
        if not setup.stage.goal_reached(result.rows) and goal < 1.0:
            print(
                f"cloning ended at {format_mean_score(result.rows)}, below "
                f"pretrain.stop_at_success={goal:.0%}",
                file=sys.stderr,
            )
        facts = policy_facts(self.config, result.rows, self._score_name)
        if setup.demonstration_facts:
            facts["demonstrations"] = setup.demonstration_facts
        if distributed.is_primary():
            run_policies.save(self.folder, run_policies.BASE, setup.policy, deployed, facts)
        return setup.policy, deployed

    def _evaluate_base(self, session: Session, policy: Policy, deployed: PyTree) -> list[Row]:
        """Rows of the base policy's evaluation, one per seed; evaluated once in a run."""
        saved_rows = [
            row for row in metrics.eval_rows(self.folder / "eval.jsonl") if row["stage"] == "base"
        ]
        if distributed.broadcast_from_first(len(saved_rows) == len(self._seeds)):
            return saved_rows
        stage_name = distributed.with_host_prefix("base")
        with Progress(1, stage_name, unit="evaluation", score_name=self._score_name) as progress:
            evaluated = session.evaluator.evaluate(
                policy.eval_policy,
                jax.tree.map(lambda x: x[None], deployed),
                self._seeds,
                progress,
                video="before",
            )
        session.timer.compile_seconds += progress.compile_seconds
        columns = {"stage": "base", "env_steps": 0, "updates": 0, **session.timer.columns()}
        rows = [columns | row for row in evaluated]
        saved_seeds = {row["seed"] for row in saved_rows}
        for row in rows:
            if row["seed"] not in saved_seeds:
                session.writer.write(row)
        print(f"base policy: {format_mean_score(rows)}", file=sys.stderr)
        return rows

    # Finetuning --------------------------------------------------------------------------------

    def _finetune(self, session: Session, policy: Policy, deployed: PyTree) -> dict[str, Any]:
        setup = self._finetune_setup(policy)
        policies = FinetunedPolicies(self.folder, setup, deployed, self._score_name)
        stage = make_finetuning_stage(setup, deployed, self.cadences.finetune)
        base_rows = self._evaluate_base(session, policy, deployed)
        stage = stage._replace(guard=self._guard(base_rows), on_saved=policies.save_best)
        run_policies.forget_stop(self.folder)
        result = run_stage(stage, session)
        stop = stopped_by_decay(stage, result)
        policies.save_last(stage.members, result, str(stop or ""))
        best = policies.finish_best(session, stage, result.guard) if result.guard else {}
        if stop is not None:
            run_policies.record_stop(self.folder, str(stop))
            raise stop
        return self._summary(session, stage, base_rows, result, best)

    def _guard(self, base_rows: list[Row]) -> GuardSetup:
        """How finetuning is watched."""
        configs = [self.config.of(member.values) for member in self.config.members]
        return GuardSetup(
            members=self.config.members,
            base_rows={row["seed"]: row for row in base_rows},
            gammas=[config.algorithm.settings.gamma for config in configs],
            on_decay=self.config.finetune.on_decay,
        )

    def _finetune_setup(self, policy: Policy) -> FinetuneSetup:
        demonstrations = None
        if self.config.finetune.demo_fraction:
            demonstrations, _ = load_demonstrations(self.config, self.task)
        return assemble_finetuning(
            self.config, self.task, policy=policy, demonstrations=demonstrations
        )

    def _summary(
        self,
        session: Session,
        stage: Stage,
        base_rows: list[Row],
        result: StageResult,
        best: dict[str, Any],
    ) -> dict[str, Any]:
        scores: dict[str, list[float]] = {}
        for member, row in zip(stage.members, result.rows, strict=True):
            scores.setdefault(member.label, []).append(score(row))
        summary: dict[str, Any] = {
            f"base_{self._score_name}": mean_score(base_rows),
            self._score_name: mean_score(result.rows),
            f"{self._score_name}_per_seed": scores if self.config.population else scores[""],
            **stage.cadence.counters(stage.cadence.segments),
        }
        if best:
            summary["best"] = best
        if result.given_up:
            summary["given_up"] = result.given_up
        summary["seconds"] = round(session.timer.seconds, 1)
        summary["compile_seconds"] = round(session.timer.compile_seconds, 1)
        summary["run_dir"] = str(self.folder)
        return summary

    def _stage_of_fault(self, fault: Mapping[str, Any]) -> Stage:
        if fault["stage"] == "pretrain":
            setup = set_up_cloning(self.config, self.task, self.sizes, self.cadences.pretrain)
            return setup.stage
        saved = saved_policy.load_saved_policy(self._base_folder)
        finetune_setup = self._finetune_setup(saved.policy)
        return make_finetuning_stage(finetune_setup, saved.deployed, self.cadences.finetune)
