"""Seven methods from clones of three qualities: very poor (5–15 %), poor (30–50 %), good (70–80 %).

    gcp-jax benchmark --file=experiments/comparisons/clones.py --run_dir=runs/clones

2 tasks × 3 clones × 7 methods (OGPO twice) × 3 seeds, about 2.5 minutes a run on 2 CPU cores;
docs/results/learning.md has what came out. The tasks are tighter than their defaults: half a
millimetre of clearance, 6 mm of tolerance. The clones are poor because they were made from few,
nearly clean demonstrations: they miss the right action rather than drown in noise.

Batches are half of those in the tasks' own configurations, OGPO draws chains from 32 states and QC
chooses among 8 samples, so that an update takes about equally long in every method. EXPO, QC and
OGPO are evaluated as they act, with the best of several samples by their critics; ``ogpo_alone`` is
evaluated without the critics.
"""

from typing import Any

TIGHT: dict[str, dict[str, Any]] = {
    "peg_insert": {"env.clearance_mm": 0.5, "demonstrations.noise": 0.3},
    "pick_place": {"env.tolerance_mm": 6.0, "demonstrations.noise": 0.5},
}
CLONES: dict[str, dict[str, dict[str, Any]]] = {
    "peg_insert": {
        "very_poor": {"demonstrations.episodes": 3, "pretrain.updates": 3600},
        "poor": {"demonstrations.episodes": 15, "pretrain.updates": 3000},
        "good": {"demonstrations.episodes": 60, "pretrain.updates": 7800},
    },
    "pick_place": {
        "very_poor": {"demonstrations.episodes": 4, "pretrain.updates": 600},
        "poor": {"demonstrations.episodes": 8, "pretrain.updates": 3000},
        "good": {"demonstrations.episodes": 16, "pretrain.updates": 3000},
    },
}


def get_config() -> dict[str, Any]:
    """What to compare."""
    names = ("ogpo", "dppo", "dsrl", "residual", "expo", "qc", "fql")
    methods: dict[str, dict[str, Any]] = {name: {"algorithm": name} for name in names}
    methods["ogpo_alone"] = {"algorithm": "ogpo", "algorithm.actor_states": 32}
    methods["ogpo"] = {**methods["ogpo_alone"], "algorithm.deploy_best_of": 8}
    methods["qc"]["algorithm.samples"] = 8
    return {
        "tasks": {
            f"{task}-{clone}": {"config": task, **TIGHT[task], **fields}
            for task, clones in CLONES.items()
            for clone, fields in clones.items()
        },
        "methods": methods,
        "seeds": 3,
        "steps": 20_480,
        "common": {
            "data_parallel": 2,
            "pretrain.stop_at_success": 1.0,
            "pretrain.evaluate_every": 600,
            "evaluation.every": 4_096,
            "evaluation.episodes": 128,
            "checkpoint.every": 20_480,
            "finetune.learning_starts": 4_096,
            "finetune.batch_size": 128,
        },
    }
