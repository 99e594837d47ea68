"""Where the numbers of a run go: JSON lines, TensorBoard, Weights & Biases.

A row is one flat record: ``stage``, ``seed``, ``env_steps``, ``updates``, ``seconds`` and numbers
named ``train/``, ``episode/``, ``eval/`` or ``time/``. The rows of a population also have
``population``, the label of the member's hyper-parameters (``config.Member.label``). A run folder
has two files of rows, ``metrics.jsonl`` and ``eval.jsonl``.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from gcp_jax.atomic_files import atomic_replacement, write_text
from gcp_jax.json_files import OneOf, Shape, parse_json, problem_of
from gcp_jax.stats import eval_rows as scores

Row = Mapping[str, Any]  # str, int, float, or a scalar array

RUN_FORMAT = 3  # of a run folder: its files, their fields and the names of the metrics
STAGES = ("pretrain", "base", "finetune")  # in the order of a run
ROW = {"stage": OneOf(STAGES), "seed": int, "env_steps": int, "updates": int}  # of a run's files


_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}  # by the writer that needs it


class Writer(Protocol):
    """Receives rows."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Appends rows to a file and flushes after each, so that killing the process loses none.

    JSON has no NaN or infinity: non-finite numbers are written as null, and ``rows`` reads null
    as NaN. If a killed process left an incomplete last line, opening the file removes it.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            truncate_after(path, lambda row: True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        plain = {key: _null_if_nonfinite(_to_python(key, value)) for key, value in row.items()}
        self._file.write(json.dumps(plain, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class RunWriter:
    """Writes rows with an ``eval/`` key to ``eval.jsonl`` and all others to ``metrics.jsonl``."""

    def __init__(self, run_dir: str | Path) -> None:
        self._metrics = JsonlWriter(Path(run_dir) / "metrics.jsonl")
        self._eval = JsonlWriter(Path(run_dir) / "eval.jsonl")

    def write(self, row: Row) -> None:
        if any(key.startswith("eval/") for key in row):
            self._eval.write(row)
        else:
            self._metrics.write(row)

    def close(self) -> None:
        self._metrics.close()
        self._eval.close()


class TensorBoardWriter:
    """Writes one event folder per stage and seed: ``DIR/tensorboard/finetune/seed_0``.

    TensorBoard then overlays the seeds. The horizontal axis is environment steps, or updates in
    pretraining. The first row that a process writes hides what an earlier process wrote from that
    step on, so that a resumed run shows no point twice.
    """

    def __init__(self, run_dir: str | Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(_missing_extra("tensorboard", "tensorboardX")) from error
        self._open = SummaryWriter
        self._folder = Path(run_dir) / "tensorboard"
        self._writers: dict[Path, Any] = {}

    def write(self, row: Row) -> None:
        folder = self._folder / row["stage"] / member(row)
        step = _step(row)
        if folder not in self._writers:
            # Event files are named by the second: without the suffix a quick restart would
            # overwrite the last one.
            self._writers[folder] = self._open(
                str(folder), purge_step=step, filename_suffix=f".from{step}"
            )
        for key, value in _numbers(row).items():
            self._writers[folder].add_scalar(key, value, step)
        self._writers[folder].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


class WandbWriter:
    """Sends the rows of a run folder to one Weights & Biases run.

    A number is named ``stage/key/seed_i`` and plotted over ``stage/step``. WANDB_MODE=offline works
    without a network or a login. The run's id is kept in the folder (``wandb_id.txt``), so that a
    resumed run continues on the same page, also after its folder was moved, and no two runs share
    one; rows that a killed process sent after its last checkpoint remain there.
    """

    def __init__(self, run_dir: str | Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(_missing_extra("wandb", "wandb")) from error
        folder = Path(run_dir).resolve()
        self._run = wandb.init(
            project="gcp-jax",
            id=_wandb_id(folder),
            name=f"{folder.parent.name}-{folder.name}",
            dir=str(folder),
            config=dict(config),
            resume="allow",
        )
        for stage in STAGES:
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def write(self, row: Row) -> None:
        stage = row["stage"]
        named = {f"{stage}/{key}/{member(row)}": value for key, value in _numbers(row).items()}
        self._run.log({f"{stage}/step": _step(row), **named})

    def close(self) -> None:
        self._run.finish()


def _wandb_id(folder: Path) -> str:
    """The id of a run on Weights & Biases: that in its folder, or a new one, written there."""
    path = folder / "wandb_id.txt"
    if path.exists() and (saved := path.read_text().strip()):
        return saved
    folder.mkdir(parents=True, exist_ok=True)
    new = uuid.uuid4().hex
    write_text(path, f"{new}\n")
    return new


class FanOut:
    """Writes each row to several writers; as a context manager it closes them."""

    def __init__(self, writers: Sequence[Writer]) -> None:
        self._writers = tuple(writers)

    def write(self, row: Row) -> None:
        for writer in self._writers:
            writer.write(row)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def member(row: Row) -> str:
    """The name of a row's member in its run: ``seed_0``, or ``actor_lr=0.0001/seed_0``."""
    point = row.get("population", "")
    seed = f"seed_{row['seed']}"
    return f"{point}/{seed}" if point else seed


def check_writers(names: Sequence[str]) -> None:
    """Raise ImportError if a package is missing; the message names the extra to install."""
    for name in names:
        package = _PACKAGES.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise ImportError(_missing_extra(name, package))


def make_writers(names: Sequence[str], run_dir: str | Path, config: Mapping[str, Any]) -> FanOut:
    """Open writers on a run folder.

    Args:
      names: any of "jsonl", "tensorboard", "wandb".
      run_dir: the run's folder.
      config: the configuration to show on Weights & Biases.

    Raises:
      ValueError: a name is unknown.
      ImportError: a package is missing; the message names the extra to install.
    """
    known: dict[str, Callable[[], Writer]] = {
        "jsonl": lambda: RunWriter(run_dir),
        "tensorboard": lambda: TensorBoardWriter(run_dir),
        "wandb": lambda: WandbWriter(run_dir, config),
    }
    for name in names:
        if name not in known:
            raise ValueError(f"metrics writer {name!r} is unknown; choose from {', '.join(known)}")
    return FanOut([known[name]() for name in dict.fromkeys(names)])


def rows(path: str | Path, shape: Shape = dict) -> list[dict[str, Any]]:
    """All rows of a file, oldest first; none if there is no file.

    An incomplete last line is ignored.

    Args:
      path: the file.
      shape: what every row must hold (``json_files``), e.g. ``ROW``.

    Raises:
      ValueError: any other line is not a JSON object, or of another shape; the message names the
        file and the line.
    """
    return [row for _, row in _lines(Path(path), shape)]


def eval_rows(path: str | Path) -> list[dict[str, Any]]:
    """The rows of ``eval.jsonl``, with their scores checked.

    Raises:
      ValueError: as ``rows``, and for a row whose score cannot be used.
    """
    found = rows(path, ROW)
    for number, row in enumerate(found, start=1):
        problem = scores.problem_of_score(row, like=found[0])
        if problem:
            raise ValueError(f"{path}, row {number}: {problem}; mend or delete the row")
    return found


def truncate_after(path: str | Path, keep: Callable[[Row], bool], shape: Shape = dict) -> None:
    """Drop the rows that ``keep`` rejects from a file, if it exists.

    The rest is kept byte for byte, and the file is replaced atomically. With ``until``, a resumed
    file equals that of a run that never stopped, because the rows of a step are written before its
    checkpoint. Close any writer of the file first.
    """
    path = Path(path)
    if not path.exists():
        return
    with atomic_replacement(path) as scratch, scratch.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line, row in _lines(path, shape) if keep(row))
        file.flush()
        os.fsync(file.fileno())


def until(stage: str, env_steps: int, updates: int) -> Callable[[Row], bool]:
    """A predicate of the rows up to a run's checkpoint, inclusive.

    Args:
      stage: the checkpoint's stage; all rows of earlier stages are accepted.
      env_steps: its environment steps; later rows of the stage are rejected.
      updates: its updates; later rows of the stage are rejected.

    Raises:
      ValueError: there is no such stage.
    """
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is unknown; choose from {', '.join(STAGES)}")

    def keep(row: Row) -> bool:
        if row["stage"] != stage:
            return STAGES.index(row["stage"]) < STAGES.index(stage)
        return bool(row["env_steps"] <= env_steps and row["updates"] <= updates)

    return keep


def _lines(path: Path, shape: Shape) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every complete line as it was written, and its row."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise TypeError
        except (ValueError, TypeError):
            if number == len(lines):
                return
            raise ValueError(
                f"{path}, line {number}: not a JSON object; delete the line to read the rest"
            ) from None
        row = {key: math.nan if value is None else value for key, value in row.items()}
        problem = problem_of(row, shape)
        if problem:
            raise ValueError(f"{path}, line {number}: {problem}; mend or delete the line")
        yield line, row


def _to_python(key: str, value: Any) -> str | float:
    """A Python scalar from a Python, numpy or JAX scalar.

    Raises:
      ValueError: the value is not a scalar.
      TypeError: it is neither a number nor a string.
    """
    if getattr(value, "ndim", 0) != 0:
        raise ValueError(
            f"metric {key!r} has shape {value.shape}; write one number per row, e.g. its mean"
        )
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"metric {key!r} is a {type(value).__name__}; write a number or a string")
    return value


def _null_if_nonfinite(value: str | float) -> str | float | None:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _numbers(row: Row) -> dict[str, float]:
    """The ``group/name`` entries of a row."""
    return {key: float(value) for key, value in row.items() if "/" in key}


def _step(row: Row) -> int:
    """The horizontal axis of a row's stage."""
    return int(row["updates"] if row["stage"] == "pretrain" else row["env_steps"])


def _missing_extra(extra: str, package: str) -> str:
    return f"the {extra} writer needs {package}; install it with: pip install gcp-jax[{extra}]"
