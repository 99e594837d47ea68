"""Bad input gets one line that names it, and exit code 2, before anything is compiled or written.

python -m benchmarks.bad_input        writes docs/reference/errors.md
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gcp_jax import envs
from gcp_jax.core import policy as policies
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.envs.demos import storage
from gcp_jax.envs.demos.collect import collect
from gcp_jax.envs.tasks import reach
from gcp_jax.launch.cli import main as cli_main
from gcp_jax.run import metrics, saved_policy
from gcp_jax.types import Specs

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "errors.md"
CONFIG = "--config=experiments/configs/reach.py"


class Case(NamedTuple):
    """A command that must be refused."""

    what: str
    words: tuple[str, ...]  # DIR in them is a folder with ``samples``


class Said(NamedTuple):
    """What the command did."""

    code: int  # exit code
    lines: list[str]  # printed
    wrote: bool  # whether it wrote a run folder


def _train(what: str, *fields: str) -> Case:
    return Case(
        what,
        ("train", CONFIG, "--run_dir=DIR/run", *(f"--config.{field}" for field in fields)),
    )


OWN_MODULES = {
    "short_chunk": """
from gcp_jax.algorithms.qc import Config
from gcp_jax.algorithms import qc


def make(config, policy, source):
    sound = qc.make(config, policy, source)
    return sound._replace(act=lambda state, obs, key: (sound.act(state, obs, key)[0][:, 0], {}))
""",
    "whole_rewards": """
import jax.numpy as jnp

from gcp_jax.envs.tasks import reach
from gcp_jax.envs.tasks.reach import QUALITY, Config


def make(config):
    env = reach.make(config)
    step = lambda state, action: env.step(state, action)._replace(reward=jnp.int32(-1))
    return env._replace(step=step)
""",
    "short_action": """
from gcp_jax.envs.tasks import reach
from gcp_jax.envs.tasks.reach import QUALITY, Config


def make(config):
    env = reach.make(config)

    def demonstrator(noise):
        sound = env.demonstrator(noise)
        return sound._replace(act=lambda memory, *rest: (sound.act(memory, *rest)[0][:1], memory))

    return env._replace(demonstrator=demonstrator)
""",
    "thawed": """
from dataclasses import dataclass

from gcp_jax.envs.tasks.reach import make


@dataclass
class Config:
    horizon: int = 24
""",
}
"""Files of a user, each with one mistake."""

CASES = (
    Case("a command that does not exist", ("trian",)),
    Case("a configuration file that does not exist", ("train", "--config=DIR/none.py")),
    Case("a configuration file that raises", ("train", "--config=DIR/raises.py")),
    Case("a configuration file that ends the program", ("train", "--config=DIR/exits.py")),
    Case("a configuration file that returns none", ("train", "--config=DIR/returns.py")),
    Case("two run folders", ("train", "--run_dir=DIR/run", "--config.run_dir=DIR/two")),
    _train("a writer that does not exist", "writers=tensorboard,foo"),
    _train("an empty tuple", "algorithm.critic_hidden=()"),
    _train("a value of a population that is no number", "population.actor_lr=1e-4,nan"),
    _train("a module that is not there", "env.module=my_task.py"),
    _train("a field that does not exist", "finetune.utdd=1"),
    _train("a value of another type", "finetune.envs=many"),
    _train("a number outside its bounds", "algorithm.gamma=1.5"),
    _train("no environments", "finetune.envs=0"),
    _train("a choice that does not exist", "algorithm.baseline=median"),
    _train("a scheme of another family", "policy.scheme=euler"),
    _train("a method that does not exist", "algorithm.name=ogpoo"),
    _train("a task that does not exist", "env.name=reech"),
    _train("a task's field of another type", "env.max_step=fast"),
    _train("a quality of demonstrations that does not exist", "demonstrations.quality=superb"),
    _train("a chunk longer than the episode", "policy.chunk=400"),
    _train("a batch larger than the replay", "finetune.batch_size=512", "finetune.capacity=256"),
    _train(
        "a warm-up as long as the run", "finetune.learning_starts=5000", "finetune.env_steps=5000"
    ),
    _train(
        "a warm-up that rounds to the length of the run",
        "finetune.learning_starts=2500",
        "finetune.env_steps=3000",
    ),
    _train("more environments than 32 bits count", "finetune.envs=1000000000"),
    _train("a number that means nothing", "policy.sigma=1e30"),
    _train("environments that devices cannot share", "data_parallel=2", "finetune.envs=63"),
    _train(
        "evaluation episodes that devices cannot share", "data_parallel=2", "evaluation.episodes=33"
    ),
    _train(
        "members of different numbers of values",
        "population.actor_lr=1e-4,3e-4",
        "population.clip=0.1",
    ),
    _train("a word that is not allowed", "finetune.on_decay=pause"),
    _train("a fraction of demonstrations above 1", "finetune.demo_fraction=1.5"),
    _train("a saved policy that does not exist", "pretrain.saved_policy=DIR/none"),
    _train("a saved policy of another task", "pretrain.saved_policy=DIR/push_t"),
    _train("a saved policy of other sizes", "pretrain.saved_policy=DIR/wide"),
    _train(
        "a saved policy with another network",
        "pretrain.saved_policy=DIR/wide",
        "policy.hidden=(8,)",
    ),
    _train("a saved policy that was cut short", "pretrain.saved_policy=DIR/cut"),
    _train("a saved policy with another archive", "pretrain.saved_policy=DIR/foreign"),
    _train("a saved policy with pickled objects", "pretrain.saved_policy=DIR/pickled"),
    _train("a compressed archive", "pretrain.saved_policy=DIR/packed"),
    _train("demonstrations that do not exist", "demonstrations.path=DIR/none"),
    _train("demonstrations of another shape", "demonstrations.path=DIR/demos_shape"),
    _train("demonstrations with NaN", "demonstrations.path=DIR/demos_nan"),
    _train("demonstrations with a number too large", "demonstrations.path=DIR/demos_large"),
    _train("demonstrations outside their bounds", "demonstrations.path=DIR/demos_range"),
    _train("demonstrations without episodes", "demonstrations.path=DIR/demos_none"),
    _train("demonstrations of another task", "demonstrations.path=DIR/demos_other"),
    _train(
        "demonstrations of another task of the same sizes",
        "demonstrations.path=DIR/demos_foreign",
    ),
    _train("a flag inside an episode", "demonstrations.path=DIR/demos_inside"),
    _train(
        "fewer demonstrations than configured",
        "demonstrations.path=DIR/demos",
        "demonstrations.episodes=99",
    ),
    Case("a folder of something else", ("train", CONFIG, "--run_dir=DIR/other")),
    Case("a folder of other files", ("train", CONFIG, "--run_dir=DIR/notes")),
    Case("an address instead of a folder", ("train", CONFIG, "--run_dir=gs://bucket/run")),
    Case(
        "a field that a command sets itself",
        ("benchmark", "--algorithms=qc", "--envs=reach", "--config.seeds=7"),
    ),
    Case("nothing to evaluate", ("evaluate", "DIR/none")),
    Case("a packaged policy that does not exist", ("evaluate", "peg_insert/ogpoo")),
    Case("the card of a policy that does not exist", ("policies", "peg_insert/ogpoo")),
    Case("a saved policy without its task", ("evaluate", "DIR/taskless")),
    Case("a damaged configuration of a run", ("debug", "DIR/damaged")),
    Case("a damaged list of runs", ("status", "DIR/damaged")),
    Case("several runs without a folder for their page", ("report", "DIR/other", "DIR/none")),
    Case("no task for demonstrations", ("demos", "--episodes=2")),
    Case("nothing to report", ("report", "DIR/none")),
    Case("runs of different tasks", ("report", "DIR/of_reach", "DIR/of_push_t", "--out=DIR/run")),
    Case("nothing to debug", ("debug", "DIR/none")),
    Case("a dataset that exists already", ("demos", "--config.env.name=reach", "--out=DIR/demos")),
    Case("a video that exists already", ("render", "reach", "--out=DIR/other/metrics.jsonl")),
    Case("no sweep file", ("sweep", "DIR/none.py")),
    Case("a sweep file that raises", ("sweep", "DIR/raises.py")),
    Case("a benchmark file that returns something else", ("benchmark", "--file=DIR/returns.py")),
    Case("a method with the name of the clone's folder", ("benchmark", "--file=DIR/base.py")),
    Case(
        "a method with the name of a clone's folder",
        ("benchmark", "--file=DIR/clone_1.py", "--clones=2"),
    ),
    Case(
        "more seeds than two clones can have",
        ("benchmark", "--algorithms=qc", "--envs=reach", "--clones=2", "--seeds=2000"),
    ),
    Case(
        "several clones of one dataset",
        (
            "benchmark",
            "--algorithms=qc",
            "--envs=reach",
            "--clones=2",
            "--config.demonstrations.path=DIR/demos",
        ),
    ),
    Case("a folder that holds no sweep", ("status", "DIR/other")),
    _train("a method of your own with a chunk of another shape", "algorithm.module=short_chunk"),
    _train("a task of your own with whole-number rewards", "env.module=whole_rewards"),
    Case(
        "a demonstrator of your own with another action",
        ("demos", "--config.env.module=short_action", "--out=DIR/run"),
    ),
    _train("a task of your own whose settings can change", "env.module=thawed"),
)


def samples(folder: Path) -> None:
    """Good and bad policies and datasets."""
    folder.mkdir(parents=True)
    steps, info, *_ = jax.device_get(
        collect(envs.make("reach"), reach.QUALITY["poor"], jax.random.key(0), 4)
    )
    storage.write(folder / "demos", steps, info, {"env": {"name": "reach"}})
    _policy(folder / "push_t", "push_t", obs_dim=4)
    _policy(folder / "wide", "reach", obs_dim=9)
    for name in ("cut", "foreign", "pickled", "packed"):
        shutil.copytree(folder / "wide", folder / name)
    arrays = folder / "cut" / "arrays.npz"
    arrays.write_bytes(arrays.read_bytes()[:2000])
    with zipfile.ZipFile(folder / "foreign" / "arrays.npz", "w") as archive:
        archive.writestr("../../notes.txt", "something else")
    np.savez(folder / "pickled" / "arrays.npz", objects=np.array([{}], dtype=object))
    np.savez_compressed(folder / "packed" / "arrays.npz", zeros=np.zeros(10**6))
    changes: dict[str, Callable[[Path], None]] = {
        "shape": lambda d: np.save(d / "obs.npy", np.load(d / "obs.npy")[:, :-1]),
        "nan": lambda d: _set(d / "obs.npy", np.nan),
        "large": lambda d: _set(d / "obs.npy", 1e30),
        "range": lambda d: _set(d / "action.npy", 1.5),
        "none": lambda d: _described(d, episodes=0),
        "other": lambda d: _narrow(d),
        "foreign": lambda d: _described(d, env={"name": "push_t"}),
        "inside": lambda d: _set(d / "terminated.npy", True),
    }
    for name, change in changes.items():
        shutil.copytree(folder / "demos", folder / f"demos_{name}")
        change(folder / f"demos_{name}")
    for name, code in OWN_MODULES.items():
        (folder / f"{name}.py").write_text(code)
    for task in ("reach", "push_t"):
        (folder / f"of_{task}").mkdir()
        record = {"format": metrics.RUN_FORMAT, "config": {"env": {"name": task}}}
        (folder / f"of_{task}" / "config.json").write_text(json.dumps(record))
    _policy(folder / "taskless", None, obs_dim=4)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("[]")
    (folder / "damaged" / "sweep.json").write_text('{"format": 1, "runs"')
    (folder / "raises.py").write_text("rate = 1 / 0\n")
    (folder / "exits.py").write_text("import sys\n\nsys.exit(0)\n")
    (folder / "returns.py").write_text("def get_config():\n    return []\n")
    for label in ("base", "clone_1"):
        declared = {
            "tasks": {"reach": {"config": "reach"}},
            "methods": {label: {"algorithm": "qc"}},
        }
        (folder / f"{label}.py").write_text(f"def get_config():\n    return {declared!r}\n")
    (folder / "other").mkdir()
    (folder / "other" / "metrics.jsonl").write_text("mine\n")
    (folder / "notes").mkdir()
    (folder / "notes" / "notes.txt").write_text("mine\n")


def _policy(path: Path, env: str | None, *, obs_dim: int) -> None:
    specs = Specs(obs_dim=obs_dim, action_dim=2, chunk=4)
    made = policies.make_policy(PolicyConfig(chunk=4, hidden=(4,), steps=2), specs)
    normalizer = Normalizer(jnp.zeros(obs_dim), jnp.ones(obs_dim))
    deployed = {"net": jax.jit(made.init)(jax.random.key(0)), "normalizer": normalizer}
    saved_policy.save_policy(path, policy=made, deployed=deployed, facts={"env": {"name": env}})


def _set(path: Path, value: float) -> None:
    array = np.load(path)
    array.reshape(len(array), -1)[3, 0] = value
    np.save(path, array)


def _described(folder: Path, **facts: Any) -> None:
    known = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**known, **facts}))


def _narrow(folder: Path) -> None:
    for name in ("obs", "next_obs"):
        np.save(folder / f"{name}.npy", np.load(folder / f"{name}.npy")[:, :-1])
    _described(folder, obs_dim=3)


def said(case: Case, folder: Path) -> Said:
    """Run a command in this process; ``folder`` has the ``samples``."""
    words = [word.replace("DIR", str(folder)) for word in case.words]
    out, err = io.StringIO(), io.StringIO()
    sys.path.append(str(folder))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli_main.main(words)
    finally:
        sys.path.remove(str(folder))
    lines = [
        line.replace(str(folder), "DIR") for line in (out.getvalue() + err.getvalue()).splitlines()
    ]
    return Said(code, lines, (folder / "run").exists())


def table(found: Sequence[tuple[Case, Said]]) -> str:
    """The page: every case with the last line that was printed."""
    lines = [
        "# Errors",
        "",
        (__doc__ or "").split("\n")[0],
        "",
        "| what | command | line |",
        "| --- | --- | --- |",
    ]
    for case, each in found:
        words = " ".join(word for word in case.words if word not in (CONFIG, "--run_dir=DIR/run"))
        cells = (case.what, f"`{words}`", f"`{each.lines[-1]}`")
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run all cases and write the page."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "samples"
        samples(folder)
        found = [(case, said(case, folder)) for case in CASES]
    PAGE.write_text(table(found))
    print(f"{len(found)} cases: {PAGE}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
