"""The saved policies that come with gcp-jax, by name: ``peg_insert/ogpo``.

They lie in ``gcp_jax/policies/TASK/METHOD``. The ``policy.json`` of each has a section ``card``:
how the policy was made and what was measured of it. ``gcp_jax.experiments.package_policy`` makes
them.

Wherever a saved policy is expected, a folder or file at that path comes first; a packaged policy is
taken if there is none.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gcp_jax.config_fields import suggest
from gcp_jax.json_files import DictOf, Maybe, OneOf, read_json

ROOT = Path(__file__).parent.parent / "policies"
CLONE = "clone"  # the method of a policy that was not finetuned
LICENCE = "Apache-2.0"
MAX_TOTAL_BYTES = 2_000_000  # of all packaged policies
NAME_PARTS = 2  # TASK/METHOD

SCORE = {
    "success": Maybe(float),  # of a task that defines it; the bounds are those of the score
    "low": float,
    "high": float,
    "episodes": int,
    "return": float,
    "length": float,
}
CARD = {
    "method": str,  # CLONE, or that of the finetuning
    "command": str,  # made the run
    "policy": str,  # of the run: "base" or "seed_0"
    "env_steps": int,  # of finetuning
    "updates": int,
    "seconds": float,
    "commit": str,
    "versions": DictOf(str),
    "demonstrations": {
        "episodes": int,
        "quality": str,
        "noise": float,
        "seed": int,
        "success": Maybe(float),
    },
    "measured_by": str,  # the command that gives the same score again
    "scores": DictOf(SCORE),  # by method: CLONE, and that of the finetuning
    "licence": OneOf((LICENCE,)),
}


def names() -> list[str]:
    """The names of the packaged policies, sorted."""
    found = ROOT.glob("*/*/policy.json")
    return sorted(path.parent.relative_to(ROOT).as_posix() for path in found)


def locate(path: str | os.PathLike[str]) -> Path:
    """The folder of a saved policy, given as a path or as the name of a packaged one.

    A path at which there is something is returned as it is, and so is a name that is unknown.
    """
    if _is_packaged(Path(path)):
        return ROOT / path
    return Path(path)


def announce(path: str | os.PathLike[str]) -> None:
    """Print which policy is meant by a path that is the name of a packaged one."""
    named = Path(path)
    if _is_packaged(named):
        print(f"{named} is the policy of that name that comes with gcp-jax", file=sys.stderr)
    elif named.as_posix() in names():
        print(
            f"{named} is what lies at that path here, not the packaged policy of that name",
            file=sys.stderr,
        )


def names_hint(path: Path) -> str:
    """The packaged names, for a message about a path at which there is nothing.

    "" if the path can be no name, or something is there.
    """
    if os.path.lexists(path) or path.is_absolute() or len(path.parts) > NAME_PARTS:
        return ""
    return f"there is no such folder, nor a packaged policy; {suggest(path.as_posix(), names())}"


def read_card(name: str) -> dict[str, Any]:
    """The card of a packaged policy.

    Raises:
      JsonError: its policy.json is damaged.
    """
    content = read_json(ROOT / name / "policy.json", {"card": CARD}, remedy="install gcp-jax again")
    card: dict[str, Any] = content["card"]
    return card


def score_name_of(score: Mapping[str, Any]) -> str:
    """What the bounds of a card's score belong to: "success", or "return" of a task without it."""
    return "success" if score.get("success") is not None else "return"


def size_of(folder: Path) -> int:
    """Bytes of the files of a saved policy."""
    return sum(path.stat().st_size for path in folder.iterdir())


def _is_packaged(path: Path) -> bool:
    """Whether a path is the name of a packaged policy, and nothing lies there."""
    return not os.path.lexists(path) and path.as_posix() in names()
