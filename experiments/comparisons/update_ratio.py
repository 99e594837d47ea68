"""Seven methods at one update for every environment step, from three clones of each of four tasks.

    gcp-jax benchmark --file=experiments/comparisons/update_ratio.py --run_dir=runs/update_ratio
    gcp-jax benchmark --file=experiments/comparisons/update_ratio.py --config.finetune.utd=0.125 \
      --run_dir=runs/update_ratio_eighth

OGPO's paper takes one update for every step. The clones of three tasks are poor because they have
seen few, nearly clean demonstrations; those of ``reach_shifted`` because their demonstrations went
to a point beside the goal, further than EXPO's edits reach. 4 tasks × 3 clones × 9 methods × 3
seeds take some twenty hours on 2 CPU cores; the same command resumes. Two commands with different
--envs and --run_dir use two cores better than one with ``data_parallel=2``.

OGPO runs three times: as shipped; with the low rate and weight of cloning that did best from one
clone of ``pick_place`` in ``clones.py``; and with that weight, shared noise and a rate that keeps a
fifth of the ratios clipped. All methods have the same sizes and otherwise their defaults. Settings
were tried on clones of seeds 0 to 2 and 100, which are not among those of this file.
"""

from typing import Any

FIRST_SEED = 10  # clones have seeds 10, 1010 and 2010: none that settings were chosen on
OFF_POLICY = {
    "finetune.unroll_chunks": 2,
    "algorithm.critics": 5,
    "algorithm.critic_hidden": (96, 96),
}
OGPO = {
    "algorithm": "ogpo",
    "algorithm.actor_states": 32,
    "algorithm.critic_lr": 3e-4,
    "algorithm.deploy_best_of": 8,
    **OFF_POLICY,
}
PEG = {"config": "peg_insert", "env.clearance_mm": 0.5, "demonstrations.noise": 0.3}
PICK = {"config": "pick_place", "env.tolerance_mm": 6.0, "demonstrations.noise": 0.5}
TASKS: dict[str, dict[str, Any]] = {
    "reach_shifted": {
        "config": "reach",
        "env.demonstrated_goal_shift": 0.2,
        "demonstrations.noise": 0.7,
        "demonstrations.episodes": 30,
        "pretrain.updates": 1500,
    },
    "peg_insert_very_poor": {**PEG, "demonstrations.episodes": 3, "pretrain.updates": 3600},
    "peg_insert_poor": {**PEG, "demonstrations.episodes": 15, "pretrain.updates": 3000},
    "pick_place_poor": {**PICK, "demonstrations.episodes": 8, "pretrain.updates": 3000},
}


def get_config() -> dict[str, Any]:
    """What to compare."""
    methods: dict[str, dict[str, Any]] = {
        name: {"algorithm": name, **OFF_POLICY}
        for name in ("expo", "qc", "dsrl", "residual", "fql")
    }
    methods["dppo"] = {"algorithm": "dppo", "finetune.unroll_chunks": 16}
    low_weight = {**OGPO, "algorithm.success_weight": 0.1}
    methods["ogpo"] = OGPO
    methods["ogpo_low_rate"] = {**low_weight, "algorithm.actor_lr": 3e-5}
    methods["ogpo_adaptive"] = {
        **low_weight,
        "algorithm.shared_noise": 4,
        "algorithm.target_clip_fraction": 0.2,
    }
    return {
        "tasks": TASKS,
        "methods": methods,
        "seeds": 3,
        "clones": 3,
        "steps": 40_960,
        "common": {
            "seed": FIRST_SEED,
            "policy.hidden": (128, 128, 128),
            "pretrain.stop_at_success": 1.0,
            "pretrain.evaluate_every": 600,
            "evaluation.every": 8_192,
            "evaluation.episodes": 128,
            "checkpoint.every": 8_192,
            "finetune.utd": 1.0,
            "finetune.learning_starts": 4_096,
            "finetune.batch_size": 64,
            "finetune.envs": 32,
        },
    }
