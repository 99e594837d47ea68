"""Evaluation of deployed policies during a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gcp_jax import mesh as mesh_lib
from gcp_jax.config import Member, RunConfig
from gcp_jax.contracts import DIVERGED
from gcp_jax.learner import evaluation, xla_options
from gcp_jax.run import distributed
from gcp_jax.run.progress import Progress
from gcp_jax.run.saved_policy import EvalPolicy
from gcp_jax.run.task import TaskInterface
from gcp_jax.stats.eval_rows import score, score_name_of
from gcp_jax.types import Array, PyTree

Row = dict[str, Any]


class Evaluator:
    """Evaluates policies on the start states of each member's seed; compiles each policy once."""

    def __init__(self, config: RunConfig, task: TaskInterface, folder: Path) -> None:
        self._config = config
        self._task = task
        self._folder = folder
        self._programs: dict[tuple[EvalPolicy, int], Any] = {}

    def evaluate(
        self,
        eval_policy: EvalPolicy,
        deployed: PyTree,
        members: Sequence[Member],
        progress: Progress,
        *,
        video: str = "",
        fresh: bool = False,
    ) -> list[Row]:
        """Evaluate one policy per member.

        Args:
          eval_policy: how the policies act.
          deployed: their parameters, leaves [S, ...] for S members, or [1, ...] for all of them.
          members: whose seeds choose the start states.
          progress: shows the compilation.
          video: write a video of the first member to ``report/VIDEO.mp4``; "": no video.
          fresh: start from states that no other evaluation of any run starts from.

        Returns:
          One row of ``eval/`` numbers per member, with the columns that name the member.
        """
        streams = [~member.seed if fresh else member.seed for member in members]
        deployed, seeds = self._place(deployed, streams)
        key = (eval_policy, len(members))
        if key not in self._programs:
            self._programs[key] = self._compile(eval_policy, deployed, seeds, progress)
        outcome, states = self._programs[key](deployed, seeds)
        if video:
            self._write_video(states, video)
        rows = evaluation.eval_rows(
            distributed.fetch(outcome),
            seeds=[member.seed for member in members],
            specs=self._task.env.specs,
        )
        return [row | member_columns(member) for member, row in zip(members, rows, strict=True)]

    def _place(self, deployed: PyTree, streams: Sequence[int]) -> tuple[PyTree, Array]:
        """Policies [S, ...] and the indices of their start states [S], each on its device.

        An index is a seed, or its complement ~seed < 0 for fresh start states, which no seed has.
        """
        count = len(streams)
        deployed = jax.tree.map(
            lambda x: np.broadcast_to(x, (count, *x.shape[1:])), distributed.fetch(deployed)
        )
        seeds = np.asarray(streams, np.int32)
        layout = (mesh_lib.P("seed"), mesh_lib.P("seed"))
        placed: tuple[PyTree, Array] = jax.device_put(
            (deployed, seeds), mesh_lib.shardings(self._mesh(count), layout)
        )
        return placed

    def _mesh(self, count: int) -> jax.sharding.Mesh:
        return mesh_lib.make_mesh(count, data=self._config.data_parallel)

    def _compile(
        self, eval_policy: EvalPolicy, deployed: PyTree, seeds: Array, progress: Progress
    ) -> Any:
        program = evaluation.build_evaluation(
            eval_policy,
            self._task.env,
            mesh=self._mesh(len(seeds)),
            episodes=self._config.evaluation.episodes,
            chunk=self._config.policy.chunk,
        )
        with progress.compiling("evaluation"):
            return program.lower(deployed, seeds).compile(xla_options.physics_options())

    def _write_video(self, states: PyTree, name: str) -> None:
        """All hosts fetch the states, since that is a collective; the first writes the video."""
        if self._task.write_video is None or not self._config.video:
            return
        states = take_index(distributed.fetch(states), 0)
        if distributed.is_primary():
            self._task.write_video(states, self._folder / "report" / f"{name}.mp4")


def member_columns(member: Member) -> dict[str, Any]:
    """The columns of a row that name its member."""
    columns: dict[str, Any] = {"seed": member.seed}
    if member.label:
        columns["population"] = member.label
    return columns


def take_index(tree: PyTree, index: int) -> PyTree:
    """Every leaf at ``index`` of its first axis."""
    return jax.tree.map(lambda x: x[index], tree)


def mean_score(rows: Sequence[Row]) -> float:
    """The mean score of evaluation rows: a success rate in [0, 1], or a return."""
    return float(np.mean([score(row) for row in rows]))


def format_mean_score(rows: Sequence[Row]) -> str:
    """The mean score of evaluation rows for a person: "81.2% success" or "return 1,234.5"."""
    mean = mean_score(rows)
    if score_name_of(rows[0]) == "success":
        return f"{mean:.1%} success"
    return f"return {mean:,.1f}"


def note_diverged(rows: Sequence[Row], stage: str) -> None:
    """Print how many episodes of an evaluation diverged, if any did."""
    diverged = sum(int(row["eval/diverged"]) for row in rows)
    if diverged and distributed.is_primary():
        episodes = sum(int(row["eval/episodes"]) for row in rows)
        print(
            f"note: {diverged} of the {episodes} episodes of the last evaluation of {stage} "
            f"{DIVERGED}",
            file=sys.stderr,
        )
