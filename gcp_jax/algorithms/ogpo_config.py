"""OGPO's settings and state (see ``gcp_jax.algorithms.ogpo``)."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from gcp_jax.config_fields import (
    FINITE,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    UNIT,
    Bounds,
    field,
)
from gcp_jax.core import critic, gradient_signal, value_function
from gcp_jax.core.networks import Normalizer
from gcp_jax.types import Array, Params

IMITATION_DATA = ("success", "replay")
BASELINES = ("group", "leave_one_out", "value")
EXTRACTIONS = ("ppo", "awr", "awfm", "fpo", "backprop")
EXTRACTIONS_IN_BLOCKS = ("ppo", "awr")  # those that draw no noise of their own
EXTRACTIONS_BY_RATIO = ("ppo", "awr", "fpo")
DEFAULT_BLOCKS = 8  # a power of 2


@dataclasses.dataclass(frozen=True)
class Config(critic.EnsembleConfig):
    """OGPO's settings, besides those of the critics. The defaults are OGPO+CA."""

    # Schedule.
    chains: int = field(8, Bounds(2), "G: chains sampled for each state [32]")
    shared_noise: int = field(
        1,
        POSITIVE_INT,
        "chains of a state that start from the same noise x_0 and are compared with each other "
        "only; a divisor of chains; 1: each starts from its own, and all are compared [1]",
    )
    actor_states: int = field(
        64,
        POSITIVE_INT,
        "states of a batch that the actor uses: every n-th, n = batch_size // actor_states; all if "
        "the batch has fewer [all]",
    )
    actor_blocks: int = field(
        0,
        NON_NEGATIVE,
        "blocks in which the chains of an actor step are taken one after the other, those without "
        "an advantage not at all; a divisor of their number on a device; 0: the largest of 8, 4, 2 "
        "and 1 that is one",
    )
    actor_lr: float = field(1e-4, NON_NEGATIVE, "Adam's learning rate of the actor [4.5e-5]")
    lr_cycle: int = field(
        0,
        NON_NEGATIVE,
        "updates in a cosine cycle of actor_lr, from 2/4.5 of it; 0: constant [50k]",
    )
    clip: float = field(0.01, POSITIVE, "ε: clip of the ratio of normalized densities [.01]")
    target_clip_fraction: float = field(
        0.0,
        UNIT,
        "fraction of ratios outside of the clip at which the actor's rate is kept, starting from "
        "actor_lr; 0: the rate is actor_lr [0]",
    )
    actor_tau: float = field(0.02, UNIT, "averaging rate of θ̄ [.005, dexterous tasks .05]")
    best_of: int = field(
        8, POSITIVE_INT, "chunks sampled to act, of which the best of two random critics is run [8]"
    )
    deploy_best_of: int = field(
        1, POSITIVE_INT, "the same in evaluation; 1 deploys the policy without its critics"
    )
    # Stabilizers.
    success_weight: float = field(
        1.0, NON_NEGATIVE, "λ: weight of cloning successful transitions; 0 is OGPO without + [1]"
    )
    imitation_data: str = field(
        "success",
        IMITATION_DATA,
        "which transitions λ clones: those of successful episodes, or all of the replay [success]",
    )
    balance_gradients: bool = field(
        False,
        None,
        "divide the gradients of the policy loss and of cloning by their averaged norms, so that "
        "success_weight is their ratio in every task [False]",
    )
    measure_snr: bool = field(
        False, None, "log the signal-to-noise ratio of the policy loss's gradient [False]"
    )
    success_critic: bool = field(
        False, None, "one more critic step, on the successful transitions [False]"
    )
    conservative: bool = field(True, None, "advantage by consensus of the critics' signs (CA)")
    target_samples: int = field(
        1, POSITIVE_INT, "next actions averaged in the critic target [8 to reduce its variance]"
    )
    target_best_of: int = field(
        1,
        POSITIVE_INT,
        "chunks sampled for each next action of the critic target, of which the best of two random "
        "critics is taken, as in acting; 1 evaluates the policy without its critics [1]",
    )
    chi2: float = field(0.0, NON_NEGATIVE, "χ²: coefficient of β; 0 switches it off [.1]")
    chi2_alpha: float = field(5.0, NON_NEGATIVE, "α: slope of the weight of min_m Q̄_m [5]")
    max_reward: float = field(5.0, FINITE, "R_max of the upper clip with χ² [5]")
    slow_tau: float = field(5e-4, UNIT, "averaging rate of the slow reference [5e-4]")
    # Ablations.
    baseline: str = field("group", BASELINES, "what is subtracted from Q̄ [group]")
    group_std: bool = field(False, None, "divide advantages by the group's std of Q̄ [False]")
    no_negative: bool = field(False, None, "replace negative advantages by 0 [False]")
    forward_kl: float = field(0.0, NON_NEGATIVE, "weight of KL(slow reference ‖ θ) [0]")
    calql: float = field(
        0.0, NON_NEGATIVE, "weight of the Cal-QL penalty during critic_warmup_updates [0]"
    )
    extraction: str = field("ppo", EXTRACTIONS, "how advantages become a policy loss [ppo]")
    temperature: float = field(
        1.0, POSITIVE, "of the weights exp(A/temperature) of 'awr' and 'awfm'"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_critics()
        self._check_actor()

    def _check_critics(self) -> None:
        if self.chi2 and self.conservative:
            raise ValueError(
                "algorithm.chi2 blends the critics itself; set algorithm.conservative=False with "
                "it."
            )
        if self.calql and not self.critic_warmup_updates:
            raise ValueError(
                "algorithm.calql acts during critic_warmup_updates; set "
                "algorithm.critic_warmup_updates above 0 with it."
            )

    def _check_actor(self) -> None:
        if self.chains % self.shared_noise:
            raise ValueError(
                f"algorithm.shared_noise is {self.shared_noise}, which does not divide the "
                f"{self.chains} chains of a state (algorithm.chains); choose a divisor."
            )
        if self.target_clip_fraction and self.extraction not in EXTRACTIONS_BY_RATIO:
            raise ValueError(
                f"algorithm.target_clip_fraction is {self.target_clip_fraction}, but "
                f"algorithm.extraction={self.extraction!r} has no ratios; allowed with it: "
                f"{', '.join(EXTRACTIONS_BY_RATIO)}."
            )
        if self.balance_gradients and not self.success_weight:
            raise ValueError(
                "algorithm.balance_gradients weighs the policy loss against cloning, but "
                "algorithm.success_weight is 0; set it above 0 with it."
            )
        if self.actor_blocks > 1 and self.extraction not in EXTRACTIONS_IN_BLOCKS:
            raise ValueError(
                f"algorithm.actor_blocks is {self.actor_blocks}, which algorithm.extraction="
                f"{self.extraction!r} does not support; allowed with it: "
                f"{', '.join(EXTRACTIONS_IN_BLOCKS)}."
            )

    @property
    def uses_slow_reference(self) -> bool:
        """Whether a term needs the slow reference."""
        return bool(self.chi2 or self.forward_kl)

    @property
    def clones_successes(self) -> bool:
        """Whether the actor clones transitions of successful episodes."""
        return bool(self.success_weight) and self.imitation_data == "success"

    def blocks_of(self, chains: int) -> int:
        """The number of blocks of an actor step of ``chains`` chains on a device.

        Raises:
          ValueError: if ``actor_blocks`` does not divide them.
        """
        if self.extraction not in EXTRACTIONS_IN_BLOCKS:
            return 1
        if not self.actor_blocks:
            return math.gcd(DEFAULT_BLOCKS, chains)
        if chains % self.actor_blocks:
            raise ValueError(
                f"algorithm.actor_blocks is {self.actor_blocks}, which does not divide the "
                f"{chains} chains of an actor step on a device; choose a divisor."
            )
        return self.actor_blocks


def replay_needs(config: Config) -> dict[str, object]:
    """What the replay must carry besides plain transitions."""
    return {
        "gamma": config.gamma,
        "success": config.clones_successes or config.success_critic,
        "to_go": bool(config.calql),
    }


class ActorState(NamedTuple):
    """The policy, its averages and its optimizer's state."""

    params: Params  # θ
    target_params: Params  # θ̄
    slow_params: Params  # the slow reference; None if unused
    opt_state: Params
    rate_factor: Array | None  # of actor_lr, []; None if it is fixed
    balance: gradient_signal.Balance | None
    signal: gradient_signal.Signal | None


class State(NamedTuple):
    """What OGPO learns, for one seed."""

    actor: ActorState
    critic: critic.CriticState
    value: value_function.ValueState | None  # V(s); None unless it is the baseline
    normalizer: Normalizer
    updates: Array  # int32 []
