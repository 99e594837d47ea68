"""Digests of the code that determines a run's numbers and may change under it.

These are the modules that the user named (``algorithm.module``, ``env.module``) with what they
import of the user's own files, and this package's source if it is not installed from a wheel.
Files that such code reads by itself, e.g. a scene, are not known here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from gcp_jax.config import RunConfig

PACKAGE = Path(__file__).resolve().parent.parent
PARTS = ("core", "algorithms", "learner", "run", "stats", "envs", "experiments")  # of the package
NOT_IN_RUNS = ("configs", "comparisons", "sweeps", "results", "plan")  # folders of experiments
SUFFIXES = (".py", ".npz", ".xml")
INSTALLED = ("site-packages", "dist-packages")  # folders of packages that are not edited


def code_digests(config: RunConfig) -> dict[str, str]:
    """SHA-256 by module: the user's own modules of a run, and "gcp_jax" if it can be edited."""
    digests = {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in sorted(user_files(config).items())
    }
    if not set(INSTALLED) & set(PACKAGE.parts):
        digests["gcp_jax"] = _digest_of_package()
    return digests


def user_files(config: RunConfig) -> dict[str, Path]:
    """The user's own files that a run uses, by the name of their module."""
    found: dict[str, Path] = {}
    waiting = [name for name in (config.algorithm.module, config.env.module) if name]
    while waiting:
        name = waiting.pop()
        spec = _spec_of_user_module(name)
        if spec is None or spec.origin is None or name in found:
            continue
        found[name] = Path(spec.origin)
        if spec.origin.endswith(".py"):
            package = name if spec.submodule_search_locations else name.rpartition(".")[0]
            waiting += _imported_names(Path(spec.origin), package)
    return found


def _spec_of_user_module(name: str) -> ModuleSpec | None:
    """Where a module of the user lies; None for any other module, which is not imported."""
    root = name.partition(".")[0]
    try:
        spec = importlib.util.find_spec(root)
        if not _is_users(spec):
            return None
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return spec if _is_users(spec) else None


def _is_users(spec: ModuleSpec | None) -> bool:
    """True for a file that is neither of Python, nor installed, nor of this package."""
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return False
    path = Path(spec.origin).resolve()
    standard = (Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
    if set(INSTALLED) & set(path.parts):
        return False
    return not any(path.is_relative_to(folder) for folder in (PACKAGE, *standard))


def _imported_names(path: Path, package: str) -> Iterator[str]:
    """Every name of a file's imports that may be a module, with the packages it lies in."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        names: Iterable[str] = ()
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = _absolute_name(node, package)
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _absolute_name(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parents = package.split(".")
    kept = parents[: len(parents) - (node.level - 1)]
    return ".".join([*kept, *([node.module] if node.module else [])])


@functools.cache  # what this process has imported does not change with the files
def _digest_of_package() -> str:
    """One digest of this package's files that a run uses."""
    files = list(PACKAGE.glob("*.py"))
    for part in PARTS:
        files += (path for path in (PACKAGE / part).rglob("*") if path.suffix in SUFFIXES)
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(PACKAGE)
        if name.parts[0] == "experiments" and name.parts[1] in NOT_IN_RUNS:
            continue
        digest.update(f"{name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
