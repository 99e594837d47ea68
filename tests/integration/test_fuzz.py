"""Nonsense in configurations and files is read or refused in one line that names it."""

import copy
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gcp_jax import envs
from gcp_jax.config import ConfigError, RunConfig
from gcp_jax.core import policy as policies
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.envs.demos import storage
from gcp_jax.envs.demos.collect import collect
from gcp_jax.envs.tasks import reach
from gcp_jax.experiments import assemble, run_config
from gcp_jax.launch.cli import main
from gcp_jax.launch.cli.parse import parse
from gcp_jax.run import checkpoint, metrics, saved_policy
from gcp_jax.types import Specs

pytestmark = pytest.mark.slow

many = settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.binary(max_size=4),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
    ),
)
DEFAULTS = run_config.defaults(env="reach").to_dict()
PLACES = [
    (*section, name)
    for section, fields in [
        ((), DEFAULTS),
        *(((k,), v) for k, v in DEFAULTS.items() if isinstance(v, dict)),
    ]
    for name in (*fields, "unheard_of")
]


def one_line(error):
    assert str(error).strip() and "\n" not in str(error).strip()


@many
@given(st.lists(st.tuples(st.sampled_from(PLACES), values), min_size=1, max_size=3))
def test_a_configuration_is_taken_or_refused_in_one_line(changes):
    content = copy.deepcopy(DEFAULTS)
    for path, value in changes:
        section = content
        for name in path[:-1]:
            section = section[name]
            if not isinstance(section, dict):
                return
        section[path[-1]] = value
    try:
        run_config.resolve(content)
    except ConfigError as error:
        one_line(error)


@many
@given(
    st.sampled_from(PLACES),
    st.text(st.characters(codec="ascii", exclude_characters="\n\r"), max_size=20),
)
def test_an_option_is_taken_or_refused_in_one_line(place, text):
    command = main.load_command("train")
    try:
        arguments = parse("train", command, [f"--config.{'.'.join(place)}={text}"])
        assert isinstance(arguments.config, RunConfig)
        if place[0] == "env" and place != ("env", "module"):
            assemble.make_env(arguments.config)
    except main.EXPECTED as error:
        assert str(error).strip()  # main joins its lines


edits = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "replace"]),
        st.floats(0, 1),
        st.binary(max_size=8),
    ),
    max_size=4,
)


def edited(content, changes):
    content = bytearray(content)
    for how, where, extra in changes:
        at = int(where * max(len(content) - 1, 0))
        if how == "flip" and content:
            content[at] ^= 1 + (extra[0] if extra else 0) % 255
        elif how == "cut":
            del content[at:]
        elif how == "insert":
            content[at:at] = extra
        else:
            content[at : at + len(extra)] = extra
    return bytes(content)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed") / "demos"
    storage.write(
        folder,
        *jax.device_get(collect(envs.make("reach"), reach.QUALITY["poor"], jax.random.key(0), 4))[
            :2
        ],
        {},
    )
    return folder


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    made = policies.make_policy(
        PolicyConfig(chunk=2, hidden=(4,), steps=2), Specs(obs_dim=3, action_dim=2, chunk=2)
    )
    deployed = {
        "net": jax.jit(made.init)(jax.random.key(0)),
        "normalizer": Normalizer(jnp.zeros(3), jnp.ones(3)),
    }
    return saved_policy.save_policy(
        tmp_path_factory.mktemp("fuzzed") / "policy", policy=made, deployed=deployed, facts={}
    )


def with_edited(folder: Path, tmp_path: Path, name: str, changes) -> Path:
    """A copy of ``folder`` with one file edited."""
    target = tmp_path / "edited"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target)
    (target / name).write_bytes(edited((folder / name).read_bytes(), changes))
    return target


NAMES = ["dataset.json", *(f"{name}.npy" for name in (*storage._STEP, "start", "mode"))]


@many
@given(name=st.sampled_from(NAMES), changes=edits)
def test_a_dataset_is_read_or_refused_in_one_line(dataset, tmp_path, name, changes):
    folder = with_edited(dataset, tmp_path, name, changes)
    try:
        storage.measured_facts(storage.read(folder))
    except storage.DatasetError as error:
        one_line(error)
        assert str(folder) in str(error)


@many
@given(field=st.sampled_from(["format", *storage._SIZES]), value=values)
def test_a_dataset_s_description_is_read_or_refused_in_one_line(dataset, tmp_path, field, value):
    facts = json.loads((dataset / "dataset.json").read_text())
    text = json.dumps({**facts, field: value}, default=repr)
    folder = with_edited(dataset, tmp_path, "dataset.json", [])
    (folder / "dataset.json").write_text(text)
    try:
        storage.read(folder)
    except storage.DatasetError as error:
        one_line(error)


@many
@given(name=st.sampled_from(["policy.json", "arrays.npz"]), changes=edits)
def test_a_saved_policy_is_read_or_refused_in_one_line(policy, tmp_path, name, changes):
    folder = with_edited(policy, tmp_path, name, changes)
    try:
        saved_policy.check_saved_policy(folder)
    except saved_policy.SavedPolicyError as error:
        one_line(error)
        assert str(folder) in str(error)


@many
@given(
    place=st.sampled_from(
        [("policy", name) for name in ("family", "chunk", "hidden", "steps", "sigma")]
        + [("specs", name) for name in Specs._fields]
    ),
    value=values,
)
def test_a_policy_s_description_is_read_or_refused_in_one_line(policy, tmp_path, place, value):
    meta = json.loads((policy / "policy.json").read_text())
    meta[place[0]][place[1]] = value
    folder = with_edited(policy, tmp_path, "policy.json", [])
    (folder / "policy.json").write_text(json.dumps(meta, default=repr))
    try:
        saved_policy.check_saved_policy(folder)
    except saved_policy.SavedPolicyError as error:
        one_line(error)


@many
@given(
    content=st.binary(max_size=200) | edits.map(lambda changes: edited(b'{"a.txt": "12"}', changes))
)
def test_a_checkpoint_with_any_signature_is_sound_or_not(tmp_path, content):
    (tmp_path / checkpoint.SIGNATURE).write_bytes(content)
    (tmp_path / "a.txt").write_text("b")
    assert isinstance(checkpoint.damage(tmp_path), str)


@many
@given(
    content=st.binary(max_size=60)
    | edits.map(lambda changes: edited(b'{"stage": "base"}\n{"stage": "base"}\n', changes))
)
def test_rows_are_read_or_refused_in_one_line(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    try:
        assert all(isinstance(row, dict) for row in metrics.rows(tmp_path / "metrics.jsonl"))
    except ValueError as error:
        one_line(error)


def test_an_archive_that_is_packed_or_too_large_is_not_opened(policy, tmp_path, monkeypatch):
    folder = with_edited(policy, tmp_path, "arrays.npz", [])
    np.savez_compressed(folder / "arrays.npz", bomb=np.zeros(10**7))
    with pytest.raises(
        saved_policy.SavedPolicyError,
        match=r"bomb.npy is compressed, which a saved policy never is",
    ):
        saved_policy.check_saved_policy(folder)
    monkeypatch.setattr(saved_policy, "MAX_BYTES", 100)
    with pytest.raises(
        saved_policy.SavedPolicyError, match="arrays.npz has .* bytes, allowed are 1 to 100"
    ):
        saved_policy.check_saved_policy(policy)
