"""The configuration of a run: frozen dataclasses, built once and passed as they are.

``RunConfig`` holds the method's and the task's own configurations as instances of their classes, so
that a reader of ``config.algorithm.settings`` has the method's own record. ``to_dict`` gives plain
JSON values; ``gcp_jax.experiments.run_config.resolve`` builds the record back from them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from gcp_jax import algorithms, config_fields, user_code
from gcp_jax.algorithms import bc, ogpo
from gcp_jax.config_fields import (
    NON_NEGATIVE,
    POSITIVE,
    POSITIVE_INT,
    UNIT_POSITIVE,
    Bounds,
    build_config,
    convert,
    field,
    suggest,
)
from gcp_jax.config_fields import ConfigError as ConfigError
from gcp_jax.core.policy import PolicyConfig

NOISE = Bounds(0, 100)  # of a demonstrator; the tasks' qualities are at most 4


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """The episodes to clone: scripted ones, or a dataset from disk."""

    episodes: int = field(200, POSITIVE_INT, "episodes to clone")
    quality: str = field(
        "mixed", None, "the demonstrator's noise level, by the task's name for it: expert, …, bad"
    )
    noise: float | None = field(
        None, NOISE, "the demonstrator's noise as a number, instead of a quality"
    )
    path: str = field(
        "",
        None,
        "a dataset (gcp-jax demos) whose first episodes are cloned instead of scripted ones",
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "demonstrations.")


@dataclasses.dataclass(frozen=True)
class Pretrain:
    """Cloning the demonstrations."""

    updates: int = field(
        4000, POSITIVE_INT, "largest number of updates; a multiple of evaluate_every is taken"
    )
    batch_size: int = field(256, POSITIVE_INT, "transitions in a batch")
    learning_rate: float = field(1e-3, POSITIVE, "AdamW's learning rate")
    weight_decay: float = field(1e-4, NON_NEGATIVE, "AdamW's weight decay")
    ema_decay: float = field(0.995, Bounds(0, 1, high_open=True), "decay of the averaged weights")
    stop_at_success: float = field(
        0.45,
        UNIT_POSITIVE,
        "stop cloning once evaluated success reaches this (1: never); for tasks scored by return, "
        "this share of the demonstrations' mean return",
    )
    evaluate_every: int = field(100, POSITIVE_INT, "updates between evaluations")
    rescale_actions: bool = field(
        False,
        None,
        "map the range of the demonstrations' actions to [-1, 1], for tasks that use a small part "
        "of the allowed range",
    )
    saved_policy: str = field(
        "",
        None,
        "a saved policy to start from instead of cloning: a folder, or the name of a packaged one",
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "pretrain.")

    @property
    def algorithm(self) -> bc.Config:
        """The configuration of behaviour cloning."""
        return bc.Config(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            ema_decay=self.ema_decay,
        )


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Finetuning; all sizes are for one seed. On-policy methods do not use ``learning_starts``,
    ``utd``, ``batch_size`` and ``capacity``."""

    env_steps: int = field(
        60_000, POSITIVE_INT, "environment steps of finetuning, rounded up to whole segments"
    )
    learning_starts: int = field(
        12_000,
        NON_NEGATIVE,
        "environment steps of the cloned policy before the first update, rounded up to whole "
        "segments",
    )
    envs: int = field(64, POSITIVE_INT, "N: parallel environments")
    unroll_chunks: int = field(
        8, POSITIVE_INT, "L: action chunks that each environment runs in a segment"
    )
    reset_pool: int = field(
        0, NON_NEGATIVE, "R: fresh start states of a segment; 0: a quarter of envs"
    )
    utd: float = field(
        0.125,
        POSITIVE,
        "gradient updates per environment step; a segment has a whole number of them, at least 1",
    )
    batch_size: int = field(256, POSITIVE_INT, "B: transitions in a batch")
    capacity: int = field(
        200_000,
        POSITIVE_INT,
        "environment steps that the replay buffer keeps, in whole segments, two at least",
    )
    demo_fraction: float = field(
        0.0, Bounds(0, 1, high_open=True), "share of demonstrations in every replayed batch"
    )
    on_decay: str = field(
        "warn",
        ("warn", "stop", "restore"),
        "what happens when a seed is evaluated below its base policy: a warning; the run stops "
        "when all seeds are; or the seed is set back to the state of its best evaluation",
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "finetune.")

    @property
    def reset_pool_size(self) -> int:
        """R, fresh start states of a segment."""
        return self.reset_pool or max(self.envs // 4, 1)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Evaluating a policy from fixed start states."""

    episodes: int = field(256, POSITIVE_INT, "start states, for each seed")
    every: int = field(
        8_192,
        POSITIVE_INT,
        "environment steps between evaluations of finetuning, rounded to whole segments",
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "evaluation.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Saving what a run needs to resume."""

    every: int = field(
        8_192,
        POSITIVE_INT,
        "environment steps (when cloning: updates) between checkpoints, rounded to whole segments",
    )
    keep: int = field(2, POSITIVE_INT, "newest checkpoints that are kept")

    def __post_init__(self) -> None:
        config_fields.check(self, "checkpoint.")


@dataclasses.dataclass(frozen=True)
class AlgorithmChoice:
    """A finetuning method and its settings."""

    name: str = field("ogpo", None, "the method's name")
    module: str = field("", None, "an importable module with a method of your own")
    settings: Any = field(ogpo.Config(), None, "an instance of the method's own Config")

    def to_dict(self) -> dict[str, Any]:
        """Name, module and all settings, flat."""
        return {"name": self.name, "module": self.module, **dataclasses.asdict(self.settings)}


@dataclasses.dataclass(frozen=True)
class EnvChoice:
    """A task, its settings and what is randomized of it."""

    name: str = field("", None, "the task's name, or SUITE:NAME")
    module: str = field("", None, "an importable module with a task of your own")
    settings: Any = field(None, None, "an instance of the task's own Config")
    randomize: Any = field(None, None, "an instance of envs.randomize.Randomize")

    def to_dict(self) -> dict[str, Any]:
        """Name, module and all settings, flat, and the section ``randomize``."""
        return {
            "name": self.name,
            "module": self.module,
            **dataclasses.asdict(self.settings),
            "randomize": dataclasses.asdict(self.randomize),
        }


class Member(NamedTuple):
    """One of the trainings that share a program: its seed and the values that vary."""

    seed: int
    values: dict[str, float]

    @property
    def label(self) -> str:
        """The values as text, ``actor_lr=0.0001,clip=0.01``; empty if nothing varies.

        Labels differ whenever values do.
        """
        return ",".join(
            f"{name}={config_fields.shortest(value)}" for name, value in self.values.items()
        )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The configuration of one run."""

    env: EnvChoice
    algorithm: AlgorithmChoice = AlgorithmChoice()
    policy: PolicyConfig = PolicyConfig()
    demonstrations: Demonstrations = Demonstrations()
    pretrain: Pretrain = Pretrain()
    finetune: Finetune = Finetune()
    evaluation: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    seed: int = field(0, Bounds(0, 2**31 - 1), "index of the first seed")
    seeds: int = field(1, POSITIVE_INT, "seeds trained in one program")
    population: dict[str, tuple[float, ...]] = field(
        {},
        None,
        "numeric fields of the method and their values: the first values of all fields are one "
        "member, the second values the next, …; each member is trained with all seeds in the same "
        "program",
    )
    data_parallel: int = field(
        1, POSITIVE_INT, "devices that share the environments and batches of a seed"
    )
    run_dir: str = field("", None, "the run folder; default: runs/ENV-METHOD/HASH")
    writers: tuple[str, ...] = field(
        (),
        ("jsonl", "tensorboard", "wandb"),
        "further writers of metrics; metrics.jsonl is always written",
    )
    video: bool = field(True, None, "write videos of the policy before and after finetuning")
    max_nonfinite_updates: int = field(
        20,
        NON_NEGATIVE,
        "skipped updates (NaN or inf) of a stage after which a training is stopped",
    )
    allow_changed_code: bool = field(
        False, None, "resume a run although code that it uses has changed since it began"
    )

    def __post_init__(self) -> None:
        config_fields.check(self, "")
        last = self.seed + self.seeds - 1
        config_fields.check_magnitude(last, f"the last of seeds={self.seeds} from seed={self.seed}")

    @property
    def all_seeds(self) -> list[int]:
        """Every seed once."""
        return list(range(self.seed, self.seed + self.seeds))

    @property
    def points(self) -> list[dict[str, float]]:
        """The combinations of values in the population; one empty combination if nothing varies."""
        if not self.population:
            return [{}]
        names = list(self.population)
        combinations = zip(*self.population.values(), strict=True)
        return [dict(zip(names, values, strict=True)) for values in combinations]

    @property
    def members(self) -> list[Member]:
        """Every training of this program, point by point."""
        pairs = itertools.product(self.points, self.all_seeds)
        return [Member(seed=seed, values=point) for point, seed in pairs]

    def of(self, point: Mapping[str, float]) -> RunConfig:
        """The run of one point of the population by itself.

        Raises:
          ConfigError: if a value is not allowed.
        """
        settings = dataclasses.replace(self.algorithm.settings, **point)
        algorithm = dataclasses.replace(self.algorithm, settings=settings)
        return dataclasses.replace(self, algorithm=algorithm, population={})


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The configuration as plain values for JSON.

    ``env`` and ``algorithm`` are flat: {"name", "module", and the fields of the settings}.
    """
    content = {each.name: getattr(config, each.name) for each in dataclasses.fields(config)}
    for name, value in content.items():
        if isinstance(value, (AlgorithmChoice, EnvChoice)):
            content[name] = value.to_dict()
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            content[name] = dataclasses.asdict(value)
    return content


def clone_config(config: RunConfig) -> RunConfig:
    """The configuration of a run's clone alone, the same for every method.

    It keeps what demonstrations and cloning depend on; everything else has its default.
    """
    return RunConfig(
        env=config.env,
        policy=config.policy,
        demonstrations=config.demonstrations,
        pretrain=config.pretrain,
        finetune=Finetune(learning_starts=0),  # it is not finetuned: any size is allowed
        evaluation=config.evaluation,
        seed=config.seed,
        seeds=config.seeds,
        data_parallel=config.data_parallel,
        video=False,
        allow_changed_code=config.allow_changed_code,
    )


def build_algorithm_choice(section: Any) -> AlgorithmChoice:
    """A method with its settings from {"name": …, "module": …, **settings}.

    Raises:
      ConfigError: in one line, for an unknown method or field, or a value that is not allowed.
    """
    name, module, fields = user_code.split_name(section, "algorithm")
    try:
        config = algorithms.load(name, module).Config
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error
    settings = build_config(config, fields, "algorithm.")
    config_fields.check(settings, "algorithm.")  # a method of the user may not do it
    return AlgorithmChoice(name=name, module=module, settings=settings)


def build_population(section: Any, algorithm: AlgorithmChoice) -> dict[str, tuple[float, ...]]:
    """The values of each field that varies, equally many for every field.

    Raises:
      ConfigError: in one line, for a field that the method lacks or that is not a number, for
        unequal numbers of values, and for two equal members.
    """
    if not isinstance(section, Mapping):
        raise ConfigError(f"population is {section!r}; a section {{field: values}} is expected.")
    defaults = {each.name: each.default for each in dataclasses.fields(algorithm.settings)}
    numeric = [name for name, default in defaults.items() if type(default) in (int, float)]
    population: dict[str, tuple[float, ...]] = {}
    for name, values in section.items():
        where = f"population.{name}"
        if name not in numeric:
            lacks = f"{algorithm.name} has no numeric field {name!r}"
            raise ConfigError(f"{where}: {lacks}; {suggest(str(name), numeric)}.")
        listed = tuple(values) if isinstance(values, (list, tuple)) else (values,)
        if not listed:
            example = f"--config.{where}=1e-4,3e-4"
            raise ConfigError(f"{where} has no values; give some, e.g. {example}.")
        kind = type(defaults[name])
        population[name] = tuple(convert(kind, value, where) for value in listed)
    _check_points(population)
    return population


def _check_points(population: Mapping[str, tuple[float, ...]]) -> None:
    """Raise ConfigError for unequal numbers of values, and for two equal members."""
    if len({len(values) for values in population.values()}) > 1:
        sizes = ", ".join(f"{name} has {len(values)}" for name, values in population.items())
        needed = "the fields vary together, so each needs as many values as the others"
        raise ConfigError(f"population: {sizes} values; {needed}.")
    points = list(zip(*population.values(), strict=True))
    if len(set(points)) < len(points):
        raise ConfigError(
            "population: two members have the same values; give each combination once."
        )
