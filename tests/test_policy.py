"""A policy over chunks is the flow over flattened chunks; an artifact gives back the same actions or one clear error."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax import policy
from gcp_jax.networks import Normaliser
from gcp_jax.policy import ArtifactError, PolicyConfig
from gcp_jax.types import Specs

SPECS = Specs(obs_dim=3, action_dim=2, chunk=2)


@pytest.fixture(scope="module")
def made():
    return policy.make(PolicyConfig(chunk=2, hidden=(8, 8), steps=3, sigma=0.2), SPECS)


@pytest.fixture(scope="module")
def deployed(made):
    normaliser = Normaliser(jnp.array([1.0, -2.0, 0.5]), jnp.array([2.0, 0.5, 1.0]))
    return {"net": jax.jit(made.init)(jax.random.key(0)), "normaliser": normaliser}


@pytest.fixture(scope="module")
def obs():
    return jnp.asarray(np.random.default_rng(0).standard_normal((5, 3), np.float32))


def test_flatten_and_unflatten_are_inverse_and_row_major(made):
    chunk = jnp.arange(12.0).reshape(3, 2, 2)
    np.testing.assert_array_equal(made.flatten(chunk), chunk.reshape(3, 4))
    np.testing.assert_array_equal(made.unflatten(made.flatten(chunk)), chunk)


def test_chains_of_a_state_do_not_depend_on_the_other_states(made, deployed, obs):
    """Keys follow the place in the batch, so the first two states alone give the first two groups of the five."""
    draw = jax.jit(made.draw_chains, static_argnums=3)
    key = jax.random.key(1)
    chains = draw(deployed["net"], obs, key, 4)
    assert chains.shape == (5, 4, 4, 4)
    np.testing.assert_allclose(draw(deployed["net"], obs[:2], key, 4), chains[:2], rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(chains)[:, :, 0, 0])) == 20


def test_log_density_of_a_group_is_that_of_each_chain_alone(made, deployed, obs):
    chains = made.draw_chains(deployed["net"], obs, jax.random.key(2), 3)
    together = jax.jit(made.log_density)(deployed["net"], obs[:, None], chains)
    density = jax.jit(made.log_density)
    for state in range(2):
        for chain in range(3):
            alone = density(deployed["net"], obs[state], chains[state, chain])
            np.testing.assert_allclose(together[state, chain], alone, rtol=1e-4)


def test_the_imitation_loss_masks_whole_steps(made, deployed, obs):
    """With a zero last layer v = 0, so the loss is the mean of (a − z)² over the dimensions of the executed steps."""
    silent = {**deployed["net"], "last": jax.tree.map(jnp.zeros_like, deployed["net"]["last"])}
    action, z = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (2, 3, 4)), jnp.float32)
    mask = jnp.array([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    loss = made.imitation_loss(silent, obs[:3], action, mask, z, jnp.array([0.1, 0.5, 0.9]))
    error = np.asarray(action - z) ** 2
    np.testing.assert_allclose(loss, [error[0].mean(), error[1, :2].mean(), 0.0], rtol=1e-5)


def test_greedy_is_the_ode_on_normalised_observations(made, deployed, obs):
    chunk = jax.jit(made.greedy)(deployed, obs, jax.random.key(4))
    assert chunk.shape == (5, 2, 2)
    shifted = {"net": deployed["net"], "normaliser": Normaliser(jnp.zeros(3), jnp.ones(3))}
    same = jax.jit(made.greedy)(shifted, deployed["normaliser"](obs), jax.random.key(4))
    np.testing.assert_allclose(chunk, same, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"family": "diffusion"}, "policy.family is 'diffusion'; allowed: flow"),
        ({"chunk": 0}, "policy.chunk is 0; a chunk has at least 1 action"),
        ({"hidden": ()}, r"policy.hidden is \(\); give at least one positive width"),
        ({"hidden": (16, 0)}, r"policy.hidden is \(16, 0\); give at least one positive width"),
    ],
)
def test_a_wrong_config_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PolicyConfig(**settings)


@pytest.fixture(scope="module")
def saved(made, deployed, tmp_path_factory):
    path = tmp_path_factory.mktemp("artifacts") / "runs" / "policy"
    return policy.save(path, policy=made, deployed=deployed, facts={"env": "reach", "success": 0.5})


@pytest.fixture
def artifact(saved, tmp_path):
    """A copy of the saved artifact to damage."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in saved.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def test_a_loaded_artifact_gives_the_same_actions(saved, made, deployed, obs):
    loaded, parameters, facts = policy.load(saved)
    assert (loaded.config, loaded.specs) == (made.config, made.specs)
    assert facts.items() >= {"env": "reach", "success": 0.5, "format": policy.FORMAT}.items()
    jax.tree.map(np.testing.assert_array_equal, parameters, deployed)
    key = jax.random.key(5)
    np.testing.assert_array_equal(loaded.greedy(parameters, obs, key), made.greedy(deployed, obs, key))


def test_saving_leaves_two_files_and_no_scratch(saved):
    assert sorted(os.listdir(saved)) == ["arrays.npz", "policy.json"]
    assert os.listdir(saved.parent) == ["policy"]


def test_an_artifact_is_never_overwritten(saved, made, deployed):
    before = (saved / "arrays.npz").read_bytes()
    with pytest.raises(FileExistsError, match="a saved policy is never overwritten"):
        policy.save(saved, policy=made, deployed=deployed, facts={})
    assert (saved / "arrays.npz").read_bytes() == before


def test_a_failed_save_leaves_nothing(made, deployed, tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        policy.save(tmp_path / "policy", policy=made, deployed=deployed, facts={"env": object()})
    assert os.listdir(tmp_path) == []


def change_arrays(path, change):
    with np.load(path / "arrays.npz") as archive:
        arrays = dict(archive)
    change(arrays)
    np.savez(path / "arrays.npz", **arrays)


def change_meta(path, change):
    meta = json.loads((path / "policy.json").read_text())
    change(meta)
    (path / "policy.json").write_text(json.dumps(meta))


def truncate(path, name, size):
    (path / name).write_bytes((path / name).read_bytes()[:size])


def flip(path, name, position):
    content = bytearray((path / name).read_bytes())
    content[position] ^= 0xFF
    (path / name).write_bytes(content)


DAMAGES = {
    "no arrays": (lambda p: (p / "arrays.npz").unlink(), "arrays.npz is missing"),
    "no description": (lambda p: (p / "policy.json").unlink(), "policy.json is missing"),
    "empty arrays": (lambda p: truncate(p, "arrays.npz", 0), "damaged"),
    "half of the arrays": (lambda p: truncate(p, "arrays.npz", 3000), "damaged"),
    "the last byte lost": (lambda p: truncate(p, "arrays.npz", -1), "damaged"),
    "a flipped byte": (lambda p: flip(p, "arrays.npz", 500), "damaged"),
    "a flipped directory entry": (lambda p: flip(p, "arrays.npz", -100), "damaged"),
    "half of the description": (lambda p: truncate(p, "policy.json", 40), "damaged"),
    "a description in no encoding": (lambda p: (p / "policy.json").write_bytes(b"\xff\xfe\xfa"), "damaged"),
    "a list for a description": (lambda p: (p / "policy.json").write_text("[]"), "artifact format None"),
    "another format": (
        lambda p: change_meta(p, lambda m: m.update(format=99)),
        "artifact format 99; this version reads 1",
    ),
    "an unknown family": (
        lambda p: change_meta(p, lambda m: m["policy"].update(family="vae")),
        "policy.family is 'vae'",
    ),
    "an unknown setting": (lambda p: change_meta(p, lambda m: m["policy"].update(width=3)), "does not hold what"),
    "no sizes": (lambda p: change_meta(p, lambda m: m.pop("specs")), "does not hold what"),
    "a missing array": (lambda p: change_arrays(p, lambda a: a.pop("net/last/kernel")), "other names or shapes"),
    "one array too many": (
        lambda p: change_arrays(p, lambda a: a.update({"net/more": a["net/last/bias"]})),
        "other names",
    ),
    "another shape": (
        lambda p: change_arrays(p, lambda a: a.update({"net/last/bias": np.zeros(7)})),
        "other names or shapes",
    ),
    "no normaliser": (lambda p: change_arrays(p, lambda a: a.pop("normaliser/std")), "does not hold what"),
    "a changed weight": (lambda p: change_arrays(p, lambda a: a["net/last/bias"].__iadd__(0.1)), "gives other actions"),
    "a changed normaliser": (
        lambda p: change_arrays(p, lambda a: a["normaliser/mean"].__iadd__(0.5)),
        "gives other actions",
    ),
    "a weight that is not a number": (
        lambda p: change_arrays(p, lambda a: a["net/last/bias"].fill(np.nan)),
        "other actions",
    ),
    "another sampler": (lambda p: change_meta(p, lambda m: m["policy"].update(steps=9)), "gives other actions"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_gives_one_clear_line(artifact, damage):
    harm, message = DAMAGES[damage]
    harm(artifact)
    with pytest.raises(ArtifactError, match=message) as error:
        policy.load(artifact)
    assert str(artifact) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="is not a policy artifact"):
        policy.load(tmp_path / "nowhere")
