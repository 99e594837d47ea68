"""Models that other packages ship: found without importing them, and cut down in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from pathlib import Path

import mujoco


def package_folder(package: str, *parts: str, holds: str) -> Path:
    """The folder ``parts`` inside an installed package.

    Args:
      package: the package's import name.
      *parts: path of the folder inside the package.
      holds: what is missing without the package; the beginning of the error message.

    Raises:
      ImportError: in one line, if the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f'{holds} in {package.replace("_", "-")}: pip install "gcp-jax[robots]"')
    return Path(spec.submodule_search_locations[0], *parts)


def delete_elements(spec: mujoco.MjSpec, elements: Iterable) -> None:
    """Delete ``elements`` from a specification.

    They are listed first, because the specification's own lists change meanwhile.
    """
    for element in list(elements):
        spec.delete(element)
