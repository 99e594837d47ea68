"""The ``gcp-jax`` command: a table of subcommands, their errors and exit codes."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import flags

from gcp_jax import user_code
from gcp_jax.config_fields import suggest
from gcp_jax.experiments import runtime
from gcp_jax.experiments.runtime import compilation_cache, prepare_cpu
from gcp_jax.run.errors import Decayed, HostLost, Interrupted
from gcp_jax.run.signals import second_signal_ends_process

if TYPE_CHECKING:  # else "gcp-jax --help" would wait for JAX
    from gcp_jax.launch.cli.parse import Command

BAD_INPUT = 2  # exit code
HOST_LOST = 3  # exit code
DECAYED = 4  # exit code
INTERRUPTED = 128 + signal.SIGINT  # exit code
EXPECTED = (ValueError, RuntimeError, OSError, ImportError, ArithmeticError, flags.Error)

HELP = """gcp-jax: finetune generative control policies with reinforcement learning

usage: gcp-jax COMMAND [--flag=value …]

{commands}

Start here:
  gcp-jax train --config=experiments/configs/peg_insert.py --run_dir=runs/first

gcp-jax COMMAND --help explains a command. With --json the last line of standard output is one JSON
object; everything else goes to standard error."""


class Entry(NamedTuple):
    """A row of the table of commands; the module is imported when the command is used."""

    module: str  # in gcp_jax.launch.cli; its COMMANDS has the command
    summary: str


COMMANDS = {
    "train": Entry("train", "clone demonstrations, finetune the clone, evaluate, report"),
    "plan": Entry("train", "steps, updates, bytes and parameters of a run, without compiling"),
    "debug": Entry("train", "recompute the first update of a run that became NaN or inf"),
    "benchmark": Entry("benchmark", "compare methods on tasks, from shared clones, in one report"),
    "sweep": Entry("sweep", "many runs from one file, on this machine, Ray or SLURM"),
    "status": Entry("sweep", "the state of every run of a sweep"),
    "evaluate": Entry("inspect", "success of a saved policy, with its confidence interval"),
    "report": Entry(
        "inspect", "tables, curves and one HTML page from run, sweep or benchmark folders"
    ),
    "render": Entry("inspect", "a video of a saved policy or of a task's demonstrator"),
    "check": Entry("check", "check that a task or a method keeps the contracts"),
    "demos": Entry("inspect", "write scripted episodes of a task as a dataset"),
    "envs": Entry("listing", "the tasks and their fields"),
    "algorithms": Entry("listing", "the methods and their fields"),
    "policies": Entry("listing", "the policies that come with gcp-jax, and how they were made"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default that of this process.

    Returns:
      The exit code: 0; 2 for bad input; 128 + signal if a signal stopped the run; 3 if another
      host was lost.
    """
    _make_printable()
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h", "help"):
        rows = [f"  {name:<11} {entry.summary}" for name, entry in COMMANDS.items()]
        print(HELP.format(commands="\n".join(rows)))
        return 0
    name, *rest = words
    if name not in COMMANDS:
        unknown = f"there is no command {name!r}; {suggest(name, COMMANDS)}."
        print(f"gcp-jax: {unknown}", file=sys.stderr)
        return BAD_INPUT
    if "--help" in rest or "-h" in rest:
        from gcp_jax.launch.cli.help import command_help

        print(command_help(name, COMMANDS[name].summary, load_command(name)))
        return 0
    return _execute(name, rest)


def _make_printable() -> None:
    """Print "?" for what a stream cannot encode, such as Greek letters on an ASCII terminal."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def load_command(name: str) -> Command:
    """The command called ``name``."""
    module = importlib.import_module(f"gcp_jax.launch.cli.{COMMANDS[name].module}")
    command: Command = module.COMMANDS[name]
    return command


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        gone = os.environ.get("PWD", "the working directory")
        raise FileNotFoundError(f"{gone} is gone; change to a folder that is there.") from error


def _execute(name: str, words: list[str]) -> int:
    """Run a command and turn its errors into one line and an exit code."""
    wants_json = "--json" in words
    # keeps standard output free for the JSON object
    prints_aside = (
        contextlib.redirect_stdout(sys.stderr) if wants_json else contextlib.nullcontext()
    )
    try:
        with prints_aside:
            from gcp_jax.launch.cli.parse import parse

            runtime.fix_numerics()
            sys.path.append(_working_directory())  # a user's own method or task may be there
            command = load_command(name)
            arguments = parse(name, command, words)
            prepare_cpu(arguments.config.data_parallel if arguments.config else 1)
            compilation_cache()
            with second_signal_ends_process():
                result = command.run(arguments)
    except Interrupted as stop:
        print(f"gcp-jax: {stop}", file=sys.stderr)
        return stop.code
    except Decayed as stop:
        print(f"gcp-jax {name}: {stop}", file=sys.stderr)
        return DECAYED
    except KeyboardInterrupt:
        print(f"gcp-jax {name}: interrupted; what was saved is kept.", file=sys.stderr)
        return INTERRUPTED
    except HostLost as error:
        print(f"gcp-jax {name}: {error}", file=sys.stderr, flush=True)
        os._exit(HOST_LOST)  # a normal exit would wait for the lost host and then abort
    except (AssertionError, *EXPECTED) as error:
        message = _missing_devices(error)
        if not message and isinstance(error, AssertionError):
            raise
        print(f"gcp-jax {name}: {message or ' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT
    except Exception as error:
        if not user_code.place_of(error):
            raise  # a fault of this package
        print(f"gcp-jax {name}: {user_code.describe(error)}", file=sys.stderr)
        return BAD_INPUT
    if arguments.flags.json and result is not None:
        print(json.dumps(result), flush=True)
    return 0


def _missing_devices(error: BaseException) -> str:
    """Why JAX has no device, if that caused the error, here or in a user's function; else ""."""
    cause: BaseException | None = error
    while cause is not None:  # JAX asserts for a platform that has no device
        if isinstance(cause, AssertionError):
            return runtime.missing_devices()
        cause = cause.__cause__
    return ""


if __name__ == "__main__":
    sys.exit(main())
