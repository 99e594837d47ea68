"""The second stage of a run: finetuning the cloned policy with reinforcement learning."""

from __future__ import annotations

from gcp_jax.learner import population
from gcp_jax.run import metrics
from gcp_jax.run.assemble import FinetuneSetup
from gcp_jax.run.errors import Decayed
from gcp_jax.run.evaluator import format_mean_score
from gcp_jax.run.sizes import Cadence
from gcp_jax.run.stage import DataId, Stage, StageResult
from gcp_jax.types import Array, PRNGKey, PyTree, Train


def make_finetuning_stage(setup: FinetuneSetup, pretrained: PyTree, cadence: Cadence) -> Stage:
    """The stage that finetunes ``pretrained``, one training for each member.

    In a population a deployed policy is {"policy", "values"}: how it acts may depend on the
    hyper-parameters of its member.
    """
    config = setup.config

    def export(train: Train) -> PyTree:
        policies = setup.algorithm.export(train.learner.state)
        if not config.population:
            return policies
        return {"policy": policies, "values": train.learner.values}

    def eval_policy_of_member(deployed: PyTree, obs: Array, key: PRNGKey) -> Array:
        algorithm, _ = setup.member(deployed["values"])
        return algorithm.eval_policy(deployed["policy"], obs, key)

    eval_policy = setup.algorithm.eval_policy
    if config.population:
        eval_policy = eval_policy_of_member
    return Stage(
        cadence=cadence,
        learner=setup.build_learner(),
        members=config.members,
        values=population.member_values(config),
        pretrained=pretrained,
        eval_members=config.members,
        eval_policy=eval_policy,
        export=export,
        algorithm_of=lambda values: setup.member(values)[0],
        demonstrations=DataId.of(setup.demonstrations, config),
        final_video="after",
    )


def stopped_by_decay(stage: Stage, result: StageResult) -> Decayed | None:
    """The error that ends a run whose members are all below their base policy; None if not so."""
    if not result.is_stopped or stage.guard is None:
        return None
    listed = ", ".join(
        f"{metrics.member(row)} {format_mean_score([row])} "
        f"(base {format_mean_score([stage.guard.base_rows[row['seed']]])})"
        for row in result.rows
    )
    cadence = stage.cadence
    done = cadence.progress(result.clock)
    return Decayed(
        f"stopped at {done} of {cadence.progress(cadence.segments)} {cadence.unit}, below the base "
        f"policy (finetune.on_decay=stop): {listed}. Checkpoint and policies are saved, the best "
        "ones in policy/best; --config.finetune.on_decay=warn continues from there."
    )
