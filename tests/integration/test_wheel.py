"""The wheel and the sdist: what they contain, and that the installed package imports only itself.

ROS 2 has a package ``launch``, and many repositories have a top-level ``envs``. The installed
command must work with such packages first on the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("gcp_jax", "envs", "experiments", "launch")
FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
DATA = (
    "gcp_jax/py.typed",
    "gcp_jax/policies/peg_insert/ogpo/arrays.npz",
    "gcp_jax/policies/peg_insert/ogpo/policy.json",
    "gcp_jax/envs/measured.json",
    "gcp_jax/launch/tpu.yaml",
    "gcp_jax/launch/backends/local.py",
    "gcp_jax/experiments/configs/reach.py",
    "gcp_jax/envs/tasks/reach.py",
)

pytestmark = pytest.mark.process


def pip(*words) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *words]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what is packaged: building writes into the source folder."""
    folder = tmp_path_factory.mktemp("source")
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--wheel-dir", folder, source)
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def target(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    pip("install", "--no-deps", "--no-compile", "--target", folder, wheel)
    return folder


def python_files(*, under: Path) -> set[str]:
    """The modules of the packages in the repository, by their installed path."""
    found = set()
    for path in under.rglob("*.py"):
        in_package = (path.parent / "__init__.py").exists()
        if in_package and "__pycache__" not in path.parts:
            found.add(path.relative_to(under).as_posix())
    return found


def expected_modules() -> set[str]:
    modules = {f"gcp_jax/{name}" for name in python_files(under=ROOT / "gcp_jax")}
    for package in ("envs", "experiments", "launch"):
        modules |= {f"gcp_jax/{package}/{name}" for name in python_files(under=ROOT / package)}
    return modules


def test_the_wheel_holds_one_package_with_every_module(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"gcp_jax", dist_info(names)}
    assert {name for name in names if name.endswith(".py")} == expected_modules()
    assert set(DATA) <= set(names)
    policies = ROOT / "gcp_jax" / "policies"
    expected = {f"gcp_jax/policies/{path.relative_to(policies)}" for path in policies.glob("*/*/*")}
    assert {name for name in names if name.startswith("gcp_jax/policies/")} == expected
    assert any(name.startswith("gcp_jax/envs/assets/") for name in names)
    assert any(name.startswith("gcp_jax/report/templates/") for name in names)


def dist_info(names) -> str:
    [folder] = {name.split("/")[0] for name in names if ".dist-info/" in name}
    return folder


def test_the_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    build = (
        "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
    )
    environment = tmp_path / "build"
    pip("install", "--target", environment, "setuptools>=77")
    subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)],
        cwd=source,
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(environment)},
    )
    [sdist] = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        members = archive.getmembers()
    assert not [member.name for member in members if member.issym() or member.islnk()]
    inside = {"/".join(member.name.split("/")[1:]) for member in members if member.isfile()}
    assert {name for name in inside if name.startswith("gcp_jax/") and name.endswith(".py")} == (
        expected_modules()
    )
    rebuilt = tmp_path / "rebuilt"
    pip("wheel", "--no-deps", "--wheel-dir", rebuilt, sdist)
    [again] = rebuilt.glob("*.whl")
    assert set(zipfile.ZipFile(again).namelist()) == set(zipfile.ZipFile(wheel).namelist())


def test_only_gcp_jax_is_installed(target):
    top_level = {path.name for path in target.iterdir() if not path.name.endswith(".dist-info")}
    assert top_level - {"bin"} == {"gcp_jax"}


def test_the_command_runs_beside_packages_of_the_same_names(target, tmp_path):
    for name in SOURCES[1:]:
        (tmp_path / name).mkdir()
        message = f"raise ImportError('{name} is another package')\n"
        (tmp_path / name / "__init__.py").write_text(message)
    path = os.pathsep.join([str(tmp_path), str(target)])
    show = "import gcp_jax; print(gcp_jax.__file__)"
    options = {"cwd": tmp_path, "capture_output": True, "text": True}
    environment = {**os.environ, "PYTHONPATH": path}
    shown = subprocess.run([sys.executable, "-c", show], env=environment, **options)
    assert shown.stdout.startswith(str(target)), shown.stdout + shown.stderr
    command = [sys.executable, "-m", "gcp_jax.launch.cli.main", "envs"]
    ended = subprocess.run(command, env=environment, **options)
    assert ended.returncode == 0, ended.stderr
    assert "peg_insert" in ended.stdout
    load = "import gcp_jax; print(gcp_jax.load_policy('peg_insert/ogpo').facts['card']['method'])"
    loaded = subprocess.run([sys.executable, "-c", load], env=environment, **options)
    assert loaded.stdout == "ogpo\n", loaded.stderr
