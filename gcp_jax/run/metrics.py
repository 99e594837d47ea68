"""Where the numbers of a run go: JSON lines that survive a crash and a resume, TensorBoard, Weights & Biases.

A row is one flat record: ``stage``, ``seed``, ``env_steps``, ``updates``, ``seconds`` and numbers named
``train/ episode/ eval/ time/``; in finetuning a population also ``population``, which of its points (``config.Member.label``). A run folder keeps two files of rows, ``metrics.jsonl`` and ``eval.jsonl``.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

Row = Mapping[str, Any]  # str, int, float, or a scalar array

STAGES = ("pretrain", "base", "finetune")  # in the order a run goes through them


class Writer(Protocol):
    """A sink for rows."""

    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonlWriter:
    """Appends rows to a file; each has left the process before ``write`` returns, so killing it loses none.

    JSON has no NaN or infinity: non-finite numbers are written as null, and ``rows`` reads null as NaN.
    A last line that a killed process left half-written is removed on opening.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            truncate_after(path, lambda row: True)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        line = json.dumps(
            {key: _finite(_plain(key, value)) for key, value in row.items()}, allow_nan=False
        )
        self._file.write(line + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class RunWriter:
    """The two files of a run folder: rows with an ``eval/`` key go to ``eval.jsonl``, others to ``metrics.jsonl``."""

    def __init__(self, run_dir: str | Path) -> None:
        self._metrics = JsonlWriter(Path(run_dir) / "metrics.jsonl")
        self._eval = JsonlWriter(Path(run_dir) / "eval.jsonl")

    def write(self, row: Row) -> None:
        is_eval = any(key.startswith("eval/") for key in row)
        (self._eval if is_eval else self._metrics).write(row)

    def close(self) -> None:
        self._metrics.close()
        self._eval.close()


class TensorBoardWriter:
    """One event folder per stage and seed, so that TensorBoard overlays the seeds: ``DIR/tensorboard/finetune/seed_0``.

    The horizontal axis is environment steps, or updates in pretraining. The first row that a process writes hides
    what an earlier process wrote from that step on, so a resumed run shows no point twice.
    """

    def __init__(self, run_dir: str | Path) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError(_missing("tensorboard", "tensorboardX")) from error
        self._open, self._folder = SummaryWriter, Path(run_dir) / "tensorboard"
        self._writers: dict[Path, Any] = {}

    def write(self, row: Row) -> None:
        folder, step = self._folder / row["stage"] / member(row), _step(row)
        if folder not in self._writers:
            # Event files are named by the second; without the suffix a quick restart would overwrite the last one.
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
    """One Weights & Biases run per run folder; a number is named ``stage/key/seed_i`` and drawn over ``stage/step``.

    WANDB_MODE=offline works without a network or a login. The run's id is that of the folder, so a resumed run goes
    on in the same page; rows that a killed process sent after its last checkpoint stay there.
    """

    def __init__(self, run_dir: str | Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(_missing("wandb", "wandb")) from error
        folder = Path(run_dir).resolve()
        name = f"{folder.parent.name}-{folder.name}"
        self._run = wandb.init(
            project="gcp-jax",
            id=name,
            name=name,
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


class FanOut:
    """Hands each row to every writer; also a context manager that closes them."""

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
    """What a row's training is called among those of its run: ``seed_0``, or ``actor_lr=0.0001/seed_0``."""
    point = row.get("population", "")
    return f"{point}/seed_{row['seed']}" if point else f"seed_{row['seed']}"


def writers(names: Sequence[str], run_dir: str | Path, config: Mapping[str, Any]) -> FanOut:
    """Opens the named writers on a run folder: any of ``jsonl``, ``tensorboard``, ``wandb``.

    Raises ValueError at an unknown name and ImportError, naming the extra to install, at a missing package.
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


def rows(path: str | Path) -> list[dict[str, Any]]:
    """All rows of a file, oldest first; a missing file has none. A half-written last line is left out.

    Raises ValueError, naming file and line, at any other line that is not a JSON object.
    """
    return [row for _, row in _lines(Path(path))]


def truncate_after(path: str | Path, keep: Callable[[Row], bool]) -> None:
    """Rewrites a file of rows to those ``keep`` accepts, byte for byte and atomically; a missing file is left missing.

    With ``until``, this is what makes a resumed file equal that of a run never stopped, provided the rows of a step
    are written before the checkpoint of that step. Close any writer of the file first.
    """
    path = Path(path)
    if not path.exists():
        return
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line, row in _lines(path) if keep(row))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def until(stage: str, env_steps: int, updates: int) -> Callable[[Row], bool]:
    """Accepts the rows of a run up to its checkpoint at (stage, env_steps, updates), inclusive: all of the stages
    before, and of this stage what lies at or before both counters."""
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is unknown; choose from {', '.join(STAGES)}")

    def keep(row: Row) -> bool:
        if row["stage"] != stage:
            return STAGES.index(row["stage"]) < STAGES.index(stage)
        return bool(row["env_steps"] <= env_steps and row["updates"] <= updates)

    return keep


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(line as written, row) of every complete line."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError
        except (ValueError, TypeError):
            if number == len(lines):
                return
            raise ValueError(
                f"{path}, line {number}: not a JSON object; delete the line to read the rest"
            ) from None
        yield line, {key: math.nan if value is None else value for key, value in row.items()}


def _plain(key: str, value: Any) -> str | float:
    """A Python scalar from a Python, numpy or JAX scalar."""
    if getattr(value, "ndim", 0) != 0:
        raise ValueError(
            f"metric {key!r} has shape {value.shape}; write one number per row, e.g. its mean"
        )
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, (str, int, float)):
        raise TypeError(f"metric {key!r} is a {type(value).__name__}; write a number or a string")
    return value


def _finite(value: str | float) -> str | float | None:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _numbers(row: Row) -> dict[str, float]:
    """The ``group/name`` entries of a row."""
    return {key: float(value) for key, value in row.items() if "/" in key}


def _step(row: Row) -> int:
    """What a curve of this row's stage is drawn over."""
    return int(row["updates"] if row["stage"] == "pretrain" else row["env_steps"])


def _missing(extra: str, package: str) -> str:
    return f"the {extra} writer needs {package}; install it with: pip install gcp-jax[{extra}]"
