"""The configuration of a run: frozen dataclasses with their ranges, built from plain mappings.

At the edge a run is an ``ml_collections.ConfigDict`` (any field can be overridden on the command line); inside it is
these records. ``env`` and ``algorithm`` hold a name and that task's or method's own fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import typing
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from gcp_jax import algorithms, config_fields
from gcp_jax.algorithms import bc
from gcp_jax.config_fields import (
    FINITE,
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    UNIT_POSITIVE,
    Bounds,
)
from gcp_jax.core.policy import PolicyConfig


class ConfigError(ValueError):
    """A field that cannot be used: which, what it is, what is allowed."""


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """Scripted episodes to clone. quality: a level of the task ("expert", "mixed", "poor", "bad"); noise: the
    demonstrator's noise itself, used instead of the quality where it is 0 or more; path: a dataset on disk
    (``gcp-jax demos``, ``envs.datasets``) whose first ``episodes`` episodes are cloned instead."""

    episodes: int = 200
    quality: str = "mixed"
    noise: float = -1.0
    path: str = ""

    RANGES = {"episodes": POSITIVE_INT, "noise": FINITE}

    def __post_init__(self) -> None:
        config_fields.check(self, "demonstrations.")


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Cloning. stop_at_success: cut as soon as the evaluated success reaches it (1.0: never), where a task is judged by its return, this
    share of the demonstrations' mean return; updates: at most so many;
    evaluate_every: updates between evaluations; rescale_actions: what the networks see as [-1, 1] is the range that the demonstrations'
    actions span in each dimension, where tasks move in a small part of what they allow; artifact: a saved policy to start from
    instead of cloning."""

    updates: int = 4000
    batch_size: int = 256
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    ema_decay: float = 0.995
    stop_at_success: float = 0.45
    evaluate_every: int = 100
    rescale_actions: bool = False
    artifact: str = ""

    RANGES = {
        **dict.fromkeys(("updates", "batch_size", "evaluate_every"), POSITIVE_INT),
        **bc.Config.RANGES,
        "stop_at_success": UNIT_POSITIVE,
    }

    def __post_init__(self) -> None:
        config_fields.check(self, "pretrain.")

    @property
    def algorithm(self) -> bc.Config:
        """The cloning method's own configuration."""
        return bc.Config(self.learning_rate, self.weight_decay, self.ema_decay)


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Finetuning; all sizes are for one seed. env_steps: how long; learning_starts: environment steps of the base policy before the
    first update; envs: N; rows: L, chunks each environment runs in a segment; pool: fresh start states a segment (0: N/4);
    utd: gradient updates per environment step; batch_size: B; capacity: environment steps the replay keeps; demo_fraction:
    share of demonstrations in every batch of a replay. An on-policy method neither warms up nor uses utd, batch_size and capacity."""

    env_steps: int = 60_000
    learning_starts: int = 12_000
    envs: int = 64
    unroll_chunks: int = 8
    reset_pool: int = 0
    utd: float = 0.0625
    batch_size: int = 256
    capacity: int = 200_000
    demo_fraction: float = 0.0

    RANGES = {
        **dict.fromkeys(
            ("env_steps", "envs", "unroll_chunks", "batch_size", "capacity"), POSITIVE_INT
        ),
        **dict.fromkeys(("learning_starts", "reset_pool"), NON_NEGATIVE),
        "utd": POSITIVE,
        "demo_fraction": Bounds(0, 1, below=True),
    }

    def __post_init__(self) -> None:
        config_fields.check(self, "finetune.")

    @property
    def reset_pool_size(self) -> int:
        """R, fresh start states a segment."""
        return self.reset_pool or max(self.envs // 4, 1)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """episodes: fixed start states per seed; every: environment steps between evaluations of finetuning."""

    episodes: int = 256
    every: int = 8_192

    RANGES = {"episodes": POSITIVE_INT, "every": POSITIVE_INT}

    def __post_init__(self) -> None:
        config_fields.check(self, "evaluation.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """every: environment steps (updates, when cloning) between checkpoints; keep: how many are kept."""

    every: int = 8_192
    keep: int = 2

    RANGES = {"every": POSITIVE_INT, "keep": POSITIVE_INT}

    def __post_init__(self) -> None:
        config_fields.check(self, "checkpoint.")


class Member(NamedTuple):
    """One of the trainings that share a program: its seed, and the values of the fields that vary."""

    seed: int
    values: dict[str, float]

    @property
    def label(self) -> str:
        """What tells it from members of the same seed: ``actor_lr=0.0001,clip=0.01``; empty where nothing varies."""
        return ",".join(f"{name}={value:g}" for name, value in self.values.items())


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run. seed: index of the first seed; seeds: how many, in one program; population: numeric fields of the method and the
    values they take in this program, the first of every field together, the second of every field, …, each with all seeds; data:
    devices that share a seed's environments and batches; writers: any of jsonl (always on), tensorboard, wandb; video: write
    before.mp4 and after.mp4; max_nonfinite_updates: updates of a stage that may leave the finite numbers, and are skipped, before a training
    is given up."""

    env: dict[str, Any]
    algorithm: dict[str, Any]
    policy: PolicyConfig = PolicyConfig()
    demonstrations: Demonstrations = Demonstrations()
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    seed: int = 0
    seeds: int = 1
    population: dict[str, Any] = dataclasses.field(default_factory=dict)
    data_parallel: int = 1
    run_dir: str = ""
    writers: tuple[str, ...] = ()
    video: bool = True
    max_nonfinite_updates: int = 20

    RANGES = {
        "seed": Bounds(0, 2**31 - 1),
        "seeds": POSITIVE_INT,
        "data_parallel": POSITIVE_INT,
        "max_nonfinite_updates": NON_NEGATIVE,
    }

    def __post_init__(self) -> None:
        config_fields.check(self, "")

    @property
    def algorithm_config(self) -> Any:
        """The method's own frozen Config."""
        name, fields = split_name(self.algorithm, "algorithm")
        fields.pop("module", None)
        return build_config(self.algorithm_module.Config, fields, f"algorithm {name}: ")

    @property
    def algorithm_module(self) -> ModuleType:
        """The method's module."""
        return algorithms.load(
            split_name(self.algorithm, "algorithm")[0], self.algorithm.get("module", "")
        )

    @property
    def all_seeds(self) -> list[int]:
        """Every seed once."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def points(self) -> list[dict[str, float]]:
        """The combinations of values in the population; one empty one where nothing varies."""
        return [
            dict(zip(self.population, point, strict=True))
            for point in zip(*self.population.values(), strict=True)
        ] or [{}]

    @property
    def members(self) -> list[Member]:
        """Every training of this program, point by point."""
        return [
            Member(seed, point) for point, seed in itertools.product(self.points, self.all_seeds)
        ]

    def of(self, point: Mapping[str, float]) -> RunConfig:
        """The run of one point by itself."""
        return dataclasses.replace(self, algorithm={**self.algorithm, **point}, population={})


def split_name(section: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Split {"name": …, **fields}. Raises ConfigError without a name, or where ``module`` is none."""
    fields = dict(section)
    if not isinstance(module := fields.get("module", ""), str):
        raise ConfigError(
            f"{where}.module is {module!r}; the name of an importable module is expected."
        )
    name = fields.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}.name is missing; e.g. {where}.name='ogpo'.")
    return name, fields


def build_config(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """A frozen dataclass from a plain mapping, sections included. Raises ConfigError, in one line, for an unknown field
    or a value of the wrong type."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{where.rstrip('.')} is {values!r}; a section with some of {', '.join(fields)} is expected."
        )
    for name in values:
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(
                f"{where}there is no field {name!r}; {hint}allowed: {', '.join(fields)}."
            )
    try:
        return cls(
            **{
                name: _convert(value, hints[name], f"{where}{name}")
                for name, value in values.items()
            }
        )
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{error}") from error


def _convert(value: Any, hint: Any, where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else build_config(hint, value, f"{where}.")
    origin = typing.get_origin(hint)
    if origin is tuple:
        if isinstance(value, str) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{where} is {value!r}; a tuple is expected, e.g. (128, 128).")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(item, inner, where) for item in value)
    if origin is dict:
        return dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint in (int, float, bool, str) and (
        not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    ):
        raise ConfigError(f"{where} is {value!r}; a value of type {hint.__name__} is expected.")
    return value


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested dict of JSON values; ``build(Run, to_dict(c)) == c``."""
    return dataclasses.asdict(config)


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """A checked Run from a plain mapping, with every field of its algorithm filled in."""
    run = build_config(RunConfig, values)
    name, _ = split_name(run.algorithm, "algorithm")
    module = run.algorithm.get("module", "")
    filled = {"name": name, "module": module, **dataclasses.asdict(run.algorithm_config)}
    run = dataclasses.replace(run, algorithm=filled, population=_population(run))
    for point in run.points:
        _ = run.of(point).algorithm_config
    return run


_CLONED = (
    "env",
    "policy",
    "demonstrations",
    "pretrain",
    "evaluation",
    "seed",
    "seeds",
    "data_parallel",
)


def clone_config(config: RunConfig) -> RunConfig:
    """The configuration of a run's clone alone, one for all methods: demonstrations and cloning do not depend on them."""
    content = to_dict(config)
    kept = {name: content[name] for name in _CLONED}
    return resolve(
        {"algorithm": {"name": "ogpo"}, "video": False, **kept}
    )  # it is not finetuned, but must name some method


def _population(run: RunConfig) -> dict[str, tuple[float, ...]]:
    """The values of each field that varies, as many for one as for another. Raises ConfigError."""
    name, fields = (
        run.algorithm["name"],
        {f.name: f for f in dataclasses.fields(run.algorithm_module.Config)},
    )
    numeric = [field for field, about in fields.items() if type(about.default) in (int, float)]
    found: dict[str, tuple[float, ...]] = {}
    for field, values in run.population.items():
        where = f"population.{field}"
        if field not in numeric:
            close = difflib.get_close_matches(field, numeric, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(
                f"{where}: {name} has no numeric field {field!r}; {hint}allowed: {', '.join(numeric)}."
            )
        values = tuple(values) if isinstance(values, (list, tuple)) else (values,)
        kind = type(fields[field].default)
        found[field] = tuple(_convert(value, kind, where) for value in values)
        if not values:
            raise ConfigError(f"{where} has no values; give some, e.g. --config.{where}=1e-4,3e-4.")
    if len({len(values) for values in found.values()}) > 1:
        sizes = ", ".join(f"{field} has {len(values)}" for field, values in found.items())
        raise ConfigError(
            f"population: {sizes} values; the fields vary together, so each needs as many as the others."
        )
    points = list(zip(*found.values(), strict=True))
    if len(set(points)) < len(points):
        raise ConfigError(
            "population: two members have the same values; give each combination once."
        )
    return found
