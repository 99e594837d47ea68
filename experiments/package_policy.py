"""Make packaged policies from a finished run: its clone, and the finetuned policy of one seed.

    gcp-jax train --config=experiments/configs/reach.py --run_dir=runs/reach
    python -m gcp_jax.experiments.package_policy runs/reach

Both are played from start states that the run has not seen, and written with their cards to
``gcp_jax/policies/TASK/clone`` and ``gcp_jax/policies/TASK/METHOD``, where
``gcp_jax.load_policy("TASK/METHOD")`` finds them. What is there already is replaced only with
--replace; the same clone is kept, so that several methods can share it. A message in
``docs/reference/errors.md`` lists the names: ``python -m benchmarks.bad_input`` writes it again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gcp_jax
from gcp_jax.config import RunConfig
from gcp_jax.config_fields import check_count
from gcp_jax.experiments import play, run_config, runtime
from gcp_jax.json_files import read_json
from gcp_jax.run import metrics, packaged_policies, run_policies, saved_policy
from gcp_jax.run.errors import RunError
from gcp_jax.run.folder import finished_summary

EPISODES = 512
START_STATES = 1000  # seed of the start states; runs evaluate those of their own seeds
RECORD = {"command": str, "commit": str, "versions": dict}  # of config.json


class FinishedRun(NamedTuple):
    """A run from which policies can be packaged."""

    folder: Path
    config: RunConfig
    record: dict[str, Any]  # the content of config.json
    summary: dict[str, Any]

    @property
    def method(self) -> str:
        """The method of its finetuning."""
        return self.config.algorithm.name

    def name_of(self, method: str) -> str:
        """The packaged name of its clone or of its finetuned policy."""
        return f"{self.config.env.name.replace(':', '-')}/{method}"


def read_run(folder: Path) -> FinishedRun:
    """A finished run and what it recorded.

    Raises:
      RunError: the run is not finished, or its policies cannot be packaged.
      ConfigError: the folder holds no run.
    """
    config = run_config.config_of_run(folder)
    summary = finished_summary(folder)
    if not summary:
        raise RunError(f"{folder} holds a run that is not finished; finish it by its command.")
    record = read_json(
        folder / "config.json",
        RECORD,
        error=RunError,
        remedy="train the run again in a checkout of the repository",
    )
    run = FinishedRun(folder=folder, config=config, record=record, summary=summary)
    if problem := _why_not(config):
        raise RunError(f"{folder} {problem}; package a run that does not.")
    return run


def _why_not(config: RunConfig) -> str:
    """Why the policies of a run cannot be packaged; "" if they can."""
    if config.env.module or config.algorithm.module:
        return "uses a task or a method of your own"
    if config.demonstrations.path:
        return "clones a dataset of your own"
    if config.population:
        return "trains a population"
    if config.pretrain.saved_policy:
        return "begins from a saved policy, whose demonstrations it does not know"
    if START_STATES in config.all_seeds:
        return f"has seen the start states of seed {START_STATES}"
    return ""


def package(
    run: FinishedRun,
    *,
    seed: int | None = None,
    episodes: int = EPISODES,
    out: Path = packaged_policies.ROOT,
    replace: bool = False,
) -> list[Path]:
    """Evaluate the clone and the finetuned policy of a run and write them with their cards.

    Args:
      run: the run.
      seed: of the finetuned policy; None: the run's first.
      episodes: start states.
      out: the folder of all packaged policies.
      replace: whether to replace what is there.

    Returns:
      The folders that were written.

    Raises:
      RunError: a policy is there and may not be replaced.
      SavedPolicyError: a policy of the run cannot be used.
    """
    seed = run.config.seed if seed is None else seed
    policies = {
        packaged_policies.CLONE: run_policies.BASE,
        run.method: metrics.member({"seed": seed}),
    }
    sources = {
        method: run_policies.policy_folder(run.folder, name) for method, name in policies.items()
    }
    targets = {method: out / run.name_of(method) for method in policies}
    waiting = [
        method
        for method in policies
        if replace or not _is_there(sources[method], targets[method], method)
    ]
    scores = {method: _score(source, episodes) for method, source in sources.items()}
    for method in waiting:
        card = {
            "method": method,
            "policy": policies[method],
            **_facts_of_run(run, sources[packaged_policies.CLONE]),
            "measured_by": _evaluation(run.name_of(method), episodes),
            "scores": scores,
            "licence": packaged_policies.LICENCE,
        }
        _write(sources[method], targets[method], card)
    return [targets[method] for method in waiting]


def _is_there(source: Path, target: Path, method: str) -> bool:
    """Whether a clone is packaged already.

    Raises:
      RunError: something else is there.
    """
    if not target.exists():
        return False
    is_same = saved_policy.digest(source) == saved_policy.digest(target)
    if is_same and method == packaged_policies.CLONE:
        print(f"{target} is this clone already; it is kept", file=sys.stderr)
        return True
    raise RunError(f"{target} exists; --replace makes it again.")


def _score(path: Path, episodes: int) -> dict[str, Any]:
    """What a card says of a policy: ``packaged_policies.SCORE``."""
    played = play.play(path, episodes=episodes, seed=START_STATES)
    score = play.score_of(played, START_STATES)
    text = score.interval.format(score.name)
    print(f"{path}: {score.name} {text} over {episodes} episodes", file=sys.stderr)
    summary = play.summarize(played, score)
    del summary["recorded"]
    return summary


def _evaluation(name: str, episodes: int) -> str:
    return f"gcp-jax evaluate {name} --episodes={episodes} --seed={START_STATES}"


def _facts_of_run(run: FinishedRun, clone: Path) -> dict[str, Any]:
    """What a card says of the run: how it was started, its sizes, its code, its demonstrations."""
    recorded = saved_policy.check_saved_policy(clone).facts.get("demonstrations") or {}
    demonstrations = run.config.demonstrations
    return {
        "command": run.record["command"],
        **{name: run.summary[name] for name in ("env_steps", "updates", "seconds")},
        "commit": run.record["commit"],
        "versions": {"gcp-jax": gcp_jax.__version__, **run.record["versions"]},
        "demonstrations": {
            "quality": demonstrations.quality,
            "seed": run.config.seed,
            **recorded,
        },
    }


def _write(source: Path, target: Path, card: Mapping[str, Any]) -> None:
    """Write a policy with its card; its recorded score becomes that of the card."""
    saved = saved_policy.load_saved_policy(source)
    score = card["scores"][card["method"]]
    score_name = packaged_policies.score_name_of(score)
    measured = {score_name: score[score_name], "episodes": score["episodes"]}
    scratch = target.with_name(f".{target.name}.new")
    shutil.rmtree(scratch, ignore_errors=True)
    saved_policy.save_policy(
        scratch,
        policy=saved.policy,
        deployed=saved.deployed,
        facts={**saved.facts, **measured, "seeds": [START_STATES], "card": dict(card)},
        eval_policy=saved.eval_policy,
    )
    if target.exists():
        shutil.rmtree(target)
    os.replace(scratch, target)


def main(argv: Sequence[str] | None = None) -> int:
    """Package the policies of one run; the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="the folder of a finished run")
    parser.add_argument("--seed", type=int, help="of the finetuned policy (default: the first)")
    parser.add_argument("--episodes", type=int, default=EPISODES, help="start states")
    parser.add_argument("--replace", action="store_true", help="replace packaged policies")
    chosen = parser.parse_args(argv)
    runtime.fix_numerics()
    runtime.prepare_cpu()
    runtime.compilation_cache()
    try:
        check_count("episodes", chosen.episodes, low=1)
        written = package(
            read_run(chosen.run),
            seed=chosen.seed,
            episodes=chosen.episodes,
            replace=chosen.replace,
        )
    except (RunError, ValueError) as error:
        sys.exit(f"package_policy: {error}")
    for folder in written:
        print(f"{folder}: {packaged_policies.size_of(folder):,} bytes")
    names = packaged_policies.names()
    total = sum(packaged_policies.size_of(packaged_policies.ROOT / name) for name in names)
    print(f"all {len(names)}: {total:,} bytes, allowed {packaged_policies.MAX_TOTAL_BYTES:,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
