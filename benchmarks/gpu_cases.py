"""The steps of ``benchmarks.gpu`` that run in its own process."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import subprocess
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import environments, rollout, segment, setup, timing, update
from benchmarks.gpu_run import Case, Context, Figures, Step
from gcp_jax import envs
from gcp_jax.experiments.plan import flops
from gcp_jax.learner import loop, xla_options
from gcp_jax.types import PyTree, Train

LARGEST_ERROR = 1e-3  # of a product of 256 × 256 standard normal numbers in float32; TF32 has 1e-2
MATRIX_SIZE = 8192
TASKS = ("peg_insert", "pick_place", "push_t", "nut_on_peg")
ENVS = (4096, 1024, 8192, 2048)
UPDATES = ("ogpo 256×32", "ogpo 64×16", "expo", "dppo 5000×10")  # of update.CASES
AUTHORS = update.CASES["ogpo 256×32"]
AUTHORS_FIELDS: dict[str, Any] = {
    **{f"algorithm.{name}": value for name, value in AUTHORS.fields.items()},
    "policy.hidden": AUTHORS.policy.hidden,
    "policy.steps": AUTHORS.policy.steps,
    "finetune.batch_size": AUTHORS.batch,
    "finetune.utd": 1.0,
    "finetune.envs": 32,
    "finetune.unroll_chunks": 1,
}
SEEDS = (8, 32)
QUICK_TASK = "push_t"  # of those with MJX
QUICK_FIELDS: dict[str, Any] = {
    "algorithm.name": "qc",  # compiles faster than OGPO
    "algorithm.critic_hidden": (16,),
    "algorithm.critics": 2,
    "policy.hidden": (16,),
    "policy.steps": 2,
    "finetune.envs": 8,
    "finetune.batch_size": 8,
    "finetune.unroll_chunks": 1,
    "finetune.utd": 1.0,
}


class Precision(NamedTuple):
    """In which numbers products are computed."""

    name: str
    matmul: str  # jax_default_matmul_precision
    dtype: str  # of the networks (policy.compute)


PRECISIONS = (
    Precision(name="TF32", matmul="tensorfloat32", dtype="float32"),
    Precision(name="bfloat16", matmul="default", dtype="bfloat16"),
    Precision(name="float32", matmul="float32", dtype="float32"),
)


class Product(NamedTuple):
    """A compiled product of two square matrices."""

    run: Callable[[], jax.Array]
    tflop: float


def make_steps(*, quick: bool) -> list[Step]:
    """The steps from ``check`` to ``seeds``."""
    return [
        _check_step(quick=quick),
        _matrix_step(quick=quick),
        _physics_step(quick=quick),
        _updates_step(quick=quick),
        _segment_step(quick=quick),
        _seeds_step(quick=quick),
    ]


def _check_step(*, quick: bool) -> Step:
    task = QUICK_TASK if quick else TASKS[0]
    return Step(
        name="check",
        about="Whether JAX, the method and MJX compute on this device.",
        share=6,
        cases=[
            Case("device", lambda context: device()),
            Case("matrix product", lambda context: check_product()),
            Case("OGPO update", lambda context: check_update()),
            Case("MJX step", lambda context: check_physics(task)),
        ],
    )


def _matrix_step(*, quick: bool) -> Step:
    size = 128 if quick else MATRIX_SIZE
    repeats = 2 if quick else 10

    def measure(precision: Precision) -> Callable[[Context], Figures]:
        return lambda context: matrix_rate(precision, size, repeats)

    return Step(
        name="matrix",
        about=f"A product of two {size:,} × {size:,} matrices of random numbers.",
        share=3,
        cases=[Case(precision.name, measure(precision)) for precision in PRECISIONS],
    )


def _physics_step(*, quick: bool) -> Step:
    tasks, counts, repeats = ((QUICK_TASK,), (8,), 2) if quick else (TASKS, ENVS, 3)

    def measure(task: str, count: int) -> Callable[[Context], Figures]:
        return lambda context: rollout.measure(task, count, repeats, samples=(8,))

    return Step(
        name="physics",
        about="Acting, with the best of eight samples of the flow policy, against bare `mjx.step`, "
        "by the number of environments.",
        share=16,
        cases=[
            Case(f"{task} {count:,}", measure(task, count))
            for count, task in itertools.product(counts, tasks)
        ],
    )


def _updates_step(*, quick: bool) -> Step:
    names, size, repeats = (UPDATES[-1:], 128, 2) if quick else (UPDATES, MATRIX_SIZE, 5)

    def measure(name: str, precision: Precision) -> Callable[[Context], Figures]:
        case = update.CASES[name]
        if quick:
            case = update.shrink(case)
        return lambda context: measure_update(case, precision, size=size, repeats=repeats)

    return Step(
        name="updates",
        about="One update at its authors' shapes. `of_matrix_rate` is its rate over that of a "
        f"{size:,} × {size:,} product of the same precision, timed in turn with it.",
        share=16,
        cases=[
            Case(f"{name} {precision.name}", measure(name, precision))
            for name, precision in itertools.product(names, PRECISIONS)
        ],
    )


def _segment_step(*, quick: bool) -> Step:
    task, fields, repeats = (
        (QUICK_TASK, QUICK_FIELDS, 2) if quick else (TASKS[0], AUTHORS_FIELDS, 3)
    )
    return Step(
        name="segment",
        about="A segment of OGPO at its authors' shapes with one update per environment step. "
        "`acting` is sampling, rewards and resets: the collecting program without its physics. "
        "`updates` is the learning program, with replay and diagnostics.",
        share=10,
        cases=[Case(task, lambda context: split_segment(task, fields, repeats))],
    )


def _seeds_step(*, quick: bool) -> Step:
    task, counts, repeats = ("reach", (2,), 2) if quick else (TASKS[0], SEEDS, 3)
    fields = QUICK_FIELDS if quick else {"finetune.unroll_chunks": setup.UNROLL_CHUNKS}

    def measure(count: int) -> Callable[[Context], Figures]:
        return lambda context: measure_seeds(task, count, fields, repeats)

    return Step(
        name="seeds",
        about="A segment of OGPO at the default sizes with several seeds in one program. "
        "`throughput` is the time of as many segments of one seed over it, without compiling.",
        share=11,
        cases=[Case(f"{count} seeds", measure(count)) for count in counts],
    )


def device() -> Figures:
    """The device, its memory, and the versions of its software."""
    first = jax.devices()[0]
    memory = (first.memory_stats() or {}).get("bytes_limit", 0)
    return {
        "kind": first.device_kind,
        "devices": len(jax.devices()),
        "memory_gib": round(memory / 2**30, 1),
        "platform": " ".join(first.client.platform_version.split()),
        "driver": _driver(),
    }


def _driver() -> str:
    """Driver and memory of the first GPU as nvidia-smi prints them; "" if there is no such tool."""
    command = ["nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.partition("\n")[0]


def check_product() -> Figures:
    """The largest error of a float32 product.

    Raises:
      ArithmeticError: it is too large.
    """
    a, b = np.random.default_rng(0).standard_normal((2, 256, 256)).astype(np.float32)
    with jax.default_matmul_precision("float32"):
        found = np.asarray(jnp.matmul(a, b))
    error = float(np.abs(found - a.astype(np.float64) @ b.astype(np.float64)).max())
    if not error <= LARGEST_ERROR:
        raise ArithmeticError(f"the largest error of a product is {error}; {LARGEST_ERROR} allowed")
    return {"largest_error": error}


def check_update() -> Figures:
    """One small update of OGPO.

    Raises:
      ArithmeticError: its result is not finite.
    """
    function, inputs = update.make_update(update.shrink(AUTHORS))
    compiled = jax.jit(function).lower(*inputs).compile(xla_options.learning_options())
    _require_finite(compiled(*inputs), "the update")
    return {"finite": "yes"}


def check_physics(task: str) -> Figures:
    """One control step of one environment.

    Raises:
      ArithmeticError: its result is not finite.
    """
    _require_finite(environments.make_physics(envs.make(task), 1, 1)(), f"a step of {task}")
    return {"finite": "yes"}


def _require_finite(tree: PyTree, what: str) -> None:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    if not all(bool(jnp.isfinite(x).all()) for x in leaves):
        raise ArithmeticError(f"{what} gave NaN or infinite numbers")


@functools.cache
def make_product(precision: Precision, size: int) -> Product:
    """Compile a product of two [size, size] matrices; it is made once."""
    a, b = jax.random.normal(jax.random.key(0), (2, size, size), precision.dtype)
    with jax.default_matmul_precision(precision.matmul):
        compiled = jax.jit(jnp.matmul).lower(a, b).compile()
    return Product(run=lambda: compiled(a, b), tflop=2e-12 * size**3)


def matrix_rate(precision: Precision, size: int, repeats: int) -> Figures:
    """Milliseconds and TFLOP/s of a product."""
    product = make_product(precision, size)
    seconds = timing.measure({"product": product.run}, repeats)["product"].median_wall
    return {"ms": round(1e3 * seconds, 3), "tflop_per_s": round(product.tflop / seconds, 3)}


def measure_update(case: update.Case, precision: Precision, *, size: int, repeats: int) -> Figures:
    """Milliseconds of an update, and its rate over that of a [size, size] product."""
    policy = dataclasses.replace(case.policy, compute=precision.dtype)
    with jax.default_matmul_precision(precision.matmul):
        function, inputs = update.make_update(case._replace(policy=policy))
        compiled = jax.jit(function).lower(*inputs).compile(xla_options.learning_options())
        _, metrics = compiled(*inputs)
        products = update.executed_products(case, function, inputs, metrics)
        tflop = 1e-12 * flops.flops(products)
    product = make_product(precision, size)
    programs = {"update": lambda: compiled(*inputs), "product": product.run}
    seconds = timing.measure(programs, repeats)
    of_product = timing.paired_ratio(
        [tflop / wall for wall in seconds["update"].wall],
        [product.tflop / wall for wall in seconds["product"].wall],
    )
    return {
        "ms": round(1e3 * seconds["update"].median_wall, 3),
        "gflop": round(1e3 * tflop, 3),
        "tflop_per_s": round(tflop / seconds["update"].median_wall, 3),
        "of_matrix_rate": of_product.figures(),
    }


def split_segment(task: str, fields: dict[str, Any], repeats: int) -> Figures:
    """Milliseconds of a segment and of its parts, as ``segment.figures`` returns them."""
    made = make_run(task, fields)
    compiled = made.learner.compile(made.start())
    env_steps = made.sizes.unroll_chunks * made.sizes.specs.chunk
    count = made.config.finetune.envs
    programs = {
        "segment": setup.make_stepper(compiled.segment, made.start()),
        "collect": _make_collecting(compiled, made.start()),
        "learn": _make_learning(compiled, made.start()),
        "physics": environments.make_physics(envs.make(task), count, env_steps),
    }
    seconds = timing.measure(programs, repeats)
    collect, physics = seconds["collect"], seconds["physics"]
    acting = timing.Seconds(
        wall=[a - b for a, b in zip(collect.wall, physics.wall, strict=True)],
        cpu=[a - b for a, b in zip(collect.cpu, physics.cpu, strict=True)],
    )
    parts = {
        "segment": seconds["segment"],
        "physics": physics,
        "acting": acting,
        "updates": seconds["learn"],
    }
    return {
        "env_steps": made.sizes.env_steps,
        "number_of_updates": made.sizes.updates,
        **segment.figures(parts, made.sizes.updates),
    }


def _make_collecting(learner: loop.Learner, train: Train) -> Callable[[], PyTree]:
    """A function that collects one more segment at every call; ``train`` is consumed."""
    env_state = train.env_state
    inputs = loop.CollectInputs.of(train.learner)

    def collect() -> PyTree:
        nonlocal env_state
        env_state, collected, _ = learner.collect(env_state, inputs)
        return collected

    return collect


def _make_learning(learner: loop.Learner, train: Train) -> Callable[[], PyTree]:
    """A function that learns from the same segment at every call; ``train`` is consumed."""
    state = train.learner
    _, collected, _ = learner.collect(train.env_state, loop.CollectInputs.of(state))

    def learn() -> PyTree:
        nonlocal state
        state, metrics = learner.learn(state, collected)
        return metrics

    return learn


def measure_seeds(task: str, count: int, fields: dict[str, Any], repeats: int) -> Figures:
    """Milliseconds of a segment of ``count`` seeds and of one, timed in turn."""
    programs = {}
    for seeds in (1, count):
        made = make_run(task, {**fields, "seeds": seeds})
        train = made.start()
        programs[str(seeds)] = setup.make_stepper(made.learner.compile(train).segment, train)
    seconds = timing.measure(programs, repeats)
    one, together = seconds["1"], seconds[str(count)]
    throughput = timing.paired_ratio([count * wall for wall in one.wall], together.wall)
    return {
        "one_seed_ms": round(1e3 * one.median_wall, 2),
        "segment_ms": round(1e3 * together.median_wall, 2),
        "throughput": throughput.figures(),
    }


def make_run(task: str, fields: dict[str, Any]) -> setup.BenchmarkRun:
    """A run with these fields, by their dotted names; of OGPO without "algorithm.name"."""
    settings = {name.replace(".", "__"): value for name, value in fields.items()}
    method = settings.pop("algorithm__name", "ogpo")
    return setup.make_run(task, method, **settings)
