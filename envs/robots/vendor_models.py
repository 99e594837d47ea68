"""Models that other packages ship: found without importing those packages, and cut down in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import mujoco


def folder(package: str, *parts: str, holds: str) -> Path:
    """The folder ``parts`` of an installed ``package``. Raises ImportError, in one line, where it is not installed; ``holds`` says
    what is missing then."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f'{holds} in {package.replace("_", "-")}: pip install "gcp-jax[robots]"')
    return Path(found.submodule_search_locations[0], *parts)


def delete(spec: mujoco.MjSpec, elements: Iterable) -> None:
    """Take elements out of a specification, which changes its own lists."""
    for element in list(elements):
        spec.delete(element)
