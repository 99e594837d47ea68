"""The second stage of a run: finetuning the cloned policy with reinforcement learning."""

from __future__ import annotations

from gcp_jax.learner import population
from gcp_jax.run.assemble import FinetuneSetup
from gcp_jax.run.sizes import Cadence
from gcp_jax.run.stage import DataId, Stage
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
