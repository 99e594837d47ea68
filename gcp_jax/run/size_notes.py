"""What a run does otherwise than its configuration says, because it counts in whole segments.

``gcp-jax plan`` and every run print these notes, so that no field is rounded, or without effect,
unnoticed.
"""

from __future__ import annotations

from collections.abc import Sequence

from gcp_jax import algorithms
from gcp_jax.config import RunConfig
from gcp_jax.run.sizes import RunSizes, stage_cadences


def size_notes(config: RunConfig, sizes: RunSizes) -> list[str]:
    """Lines about fields that are rounded, and one for each member that cannot improve."""
    rounded = rounded_fields(config, sizes)
    of_cloning = [field for field in rounded if field[0].startswith("pretrain.")]
    of_finetuning = [field for field in rounded if field not in of_cloning]
    notes = []
    if of_cloning:
        every = config.pretrain.evaluate_every
        notes.append(
            f"in whole multiples of pretrain.evaluate_every={every}: {_listed(of_cloning)}"
        )
    if of_finetuning:
        segments = f"whole segments of {sizes.env_steps} env steps"
        notes.append(f"in {segments}: {_listed(of_finetuning)}")
    return notes + _frozen_policies(config, sizes)


def _listed(rounded: Sequence[tuple[str, float, float]]) -> str:
    """``finetune.env_steps 100 becomes 128, …``."""
    return ", ".join(f"{name} {asked} becomes {used}" for name, asked, used in rounded)


def rounded_fields(config: RunConfig, sizes: RunSizes) -> list[tuple[str, float, float]]:
    """The fields whose value the run rounds: (dotted name, value, value that is used)."""
    finetune = config.finetune
    pretrain, finetuning = stage_cadences(config, sizes)
    method = algorithms.load(config.algorithm.name, config.algorithm.module)
    used: dict[str, tuple[float, float]] = {
        "finetune.env_steps": (finetune.env_steps, sizes.segments * sizes.env_steps),
        "evaluation.every": (
            config.evaluation.every,
            finetuning.evaluate_every * sizes.env_steps,
        ),
        "checkpoint.every": (
            config.checkpoint.every,
            finetuning.checkpoint_every * sizes.env_steps,
        ),
    }
    if not config.pretrain.saved_policy:
        used["pretrain.updates"] = (config.pretrain.updates, pretrain.segments * pretrain.updates)
    if not algorithms.on_policy(method):
        used |= {
            "finetune.learning_starts": (
                finetune.learning_starts,
                sizes.warmup_segments * sizes.env_steps,
            ),
            "finetune.utd": (finetune.utd, sizes.updates / sizes.env_steps),
            "finetune.capacity": (
                finetune.capacity,
                sizes.capacity * finetune.envs * config.policy.chunk,
            ),
        }
    return [(name, asked, used) for name, (asked, used) in used.items() if asked != used]


def _frozen_policies(config: RunConfig, sizes: RunSizes) -> list[str]:
    """A note if the first update of the policy would come after the last update of the run."""
    updates = (sizes.segments - sizes.warmup_segments) * sizes.updates
    points = [config.of(point) for point in config.points]
    first = max(getattr(point.algorithm.settings, "first_policy_update", 0) for point in points)
    if first < updates:
        return []
    return [
        f"the policy is not finetuned: its first update would be update {first}, after the "
        f"{updates} updates of this run; lower the warm-up of {config.algorithm.name} "
        "(algorithm.critic_warmup_updates or value_warmup_segments) or raise finetune.env_steps"
    ]
