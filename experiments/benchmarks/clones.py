"""Seven methods from clones of three qualities: very poor (5–15 % success), poor (30–50 %) and good (70–80 %).

    gcp-jax benchmark --file=experiments/benchmarks/clones.py --run_dir=runs/clones

2 tasks × 3 clones × 7 methods (OGPO twice) × 3 seeds, about 3 minutes a run on 2 CPU cores; see the README for what came out. Batches are half of
the tasks' own configurations' and OGPO draws chains from 32 states, so that it takes no more time for an update than the others.
EXPO and QC deploy the best of several samples by their critics; ``ogpo`` deploys its policy alone, ``ogpo_best_of_8`` as they do.
"""

from typing import Any

VERY_POOR = {"demonstrations.quality": "poor", "pretrain.stop_at": 0.05, "pretrain.evaluate_every": 50}
POOR = {"pretrain.stop_at": 0.30, "pretrain.evaluate_every": 100}
GOOD = {"pretrain.stop_at": 0.70, "pretrain.evaluate_every": 100}


def get_config() -> dict[str, Any]:
    """What to compare."""
    clones: dict[str, dict[str, Any]] = {"very_poor": VERY_POOR, "poor": POOR, "good": GOOD}
    names = ("ogpo", "dppo", "dsrl", "residual", "expo", "qc", "fql")
    methods: dict[str, dict[str, Any]] = {name: {"algorithm": name} for name in names}
    methods["ogpo"]["algorithm.actor_states"] = 32
    methods["ogpo_best_of_8"] = {**methods["ogpo"], "algorithm.deploy_best_of": 8}
    return {
        "tasks": {
            f"{task}-{name}": {"config": task, **fields}
            for task in ("peg_insert", "pick_place")
            for name, fields in clones.items()
        },
        "methods": methods,
        "seeds": 3,
        "steps": 24_576,
        "common": {
            "data": 2,
            "evaluation.every": 8_192,
            "evaluation.episodes": 128,
            "checkpoint.every": 24_576,
            "finetune.warmup_steps": 6_144,
            "finetune.batch_size": 128,
        },
    }
