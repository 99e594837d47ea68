"""What a run needs of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gcp_jax.core.demonstrations import Demonstrations
from gcp_jax.types import PRNGKey, PyTree, VectorEnv


class TaskInterface(NamedTuple):
    """An environment, its demonstrations and its renderer."""

    env: VectorEnv

    # (key) -> (demonstrations, facts: plain values)
    demonstrate: Callable[[PRNGKey], tuple[Demonstrations, dict[str, Any]]]

    # (host states [T, F, ...] of F episodes, path) -> None; None if the task cannot be rendered
    write_video: Callable[[PyTree, Path], None] | None

    # digests of what the run reads from disk, by the field that names it: a dataset, a saved policy
    inputs: Mapping[str, str] = MappingProxyType({})
