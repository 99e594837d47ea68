"""The code of a run: the user's own modules with what they import, and this package's source."""

import sys

import pytest
from helpers.run_configs import small_config

from gcp_jax.run import code_digests as digests_lib
from gcp_jax.run.code_digests import code_digests, user_files


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run whose method is a module of the user, with helpers of its own."""
    package = tmp_path / "user_parts"
    package.mkdir()
    files = {
        tmp_path / "user_method.py": (
            "import json\nimport jax.numpy as jnp\nimport user_helper\n"
            "from gcp_jax.algorithms.qc import Config, make\nfrom user_parts import losses\n"
        ),
        tmp_path / "user_helper.py": "def late():\n    import user_late\n",
        tmp_path / "user_late.py": "import user_method\n",
        package / "__init__.py": "",
        package / "losses.py": "from . import shared\nfrom .other import thing\n",
        package / "shared.py": "",
        package / "other.py": "thing = 1\n",
        tmp_path / "user_unused.py": "",
    }
    for path, text in files.items():
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield small_config(**{"algorithm.module": "user_method"})
    for name in [name for name in sys.modules if name.startswith("user_")]:
        del sys.modules[name]


USED = {
    "user_helper",
    "user_late",
    "user_method",
    "user_parts",
    "user_parts.losses",
    "user_parts.other",
    "user_parts.shared",
}


def test_the_users_modules_are_followed_and_nothing_else(config):
    assert user_files(config).keys() == USED
    assert code_digests(config).keys() == USED | {"gcp_jax"}
    assert user_files(small_config()) == {}


@pytest.mark.parametrize("name", ["user_method", "user_late", "user_parts/other"])
def test_a_change_shows_in_its_file_alone(config, tmp_path, name):
    before = code_digests(config)
    path = tmp_path / f"{name}.py"
    path.write_text(path.read_text() + "sign = -1\n")
    after = code_digests(config)
    assert {key for key in before if before[key] != after[key]} == {name.replace("/", ".")}


def test_the_source_of_an_installed_package_does_not_count(monkeypatch, tmp_path):
    monkeypatch.setattr(digests_lib, "PACKAGE", tmp_path / "site-packages" / "gcp_jax")
    assert code_digests(small_config()) == {}


def test_the_source_counts_where_a_run_uses_it(monkeypatch, tmp_path):
    def digest():
        digests_lib._digest_of_package.cache_clear()
        return digests_lib._digest_of_package()

    monkeypatch.setattr(digests_lib, "PACKAGE", tmp_path)
    seen = set()
    for name in ("types.py", "core/flow.py", "envs/assets/mesh.npz", "experiments/assemble.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        seen.add(digest())
    assert len(seen) == 4
    for name in ("report/plots.py", "launch/status.py", "experiments/configs/mine.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        assert digest() in seen
    digests_lib._digest_of_package.cache_clear()
