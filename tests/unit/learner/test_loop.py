"""The compiled loop: one seed is the same run alone, among others and over several devices; what it
records is what happened.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.devices import collectives
from gcp_jax import envs
from gcp_jax.algorithms import bc, ogpo
from gcp_jax.core import policy as policy_lib
from gcp_jax.core.demonstrations import demonstrations_of
from gcp_jax.core.networks import Normalizer
from gcp_jax.core.policy import PolicyConfig
from gcp_jax.envs.tasks import reach
from gcp_jax.envs.wrappers import training
from gcp_jax.learner import batch_sources, loop, rollout
from gcp_jax.learner.loop import CollectConfig
from gcp_jax.types import Specs

SPECS = Specs(obs_dim=4, action_dim=2, chunk=4)
TASK = envs.make(
    "reach", horizon=10, tolerance=1.55
)  # so wide that a random policy reaches it now and then
ENV = training(TASK)
COLLECTION = CollectConfig(env=ENV, envs=8, unroll_chunks=3, reset_pool=4, warmup_segments=1)
CAPACITY = 9  # three segments: the third of three fills it
SEGMENTS = 4


def make_algorithm(traces):
    """Tiny OGPO whose ``update`` and ``act`` count how often they are traced."""
    config = ogpo.Config(
        chains=4,
        actor_states=8,
        critics=3,
        critic_hidden=(16,),
        best_of=2,
        actor_lr=1e-3,
        actor_tau=0.1,
        gamma=0.99,
        critic_lr=3e-4,
        critic_tau=0.02,
        critic_warmup_updates=0,
    )
    policy = policy_lib.make_policy(PolicyConfig(chunk=4, hidden=(16, 16), steps=2), SPECS)
    source = batch_sources.replay(
        capacity=CAPACITY, batch_size=16, updates=2, **ogpo.replay_needs(config)
    )
    algorithm = ogpo.make(config, policy, source)

    def counted(name, function):
        @functools.wraps(function)
        def traced(*args):
            traces[name] += 1
            return function(*args)

        return traced

    algorithm = algorithm._replace(
        update=counted("update", algorithm.update), act=counted("act", algorithm.act)
    )
    net = jax.jit(policy.init)(jax.random.key(1))
    return algorithm, {"net": net, "normalizer": Normalizer(jnp.zeros(4), jnp.full(4, 0.5))}


def host(train):
    """A Train as numpy, its typed keys as their words."""
    readable = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        train,
    )
    return jax.tree.map(np.array, readable)


class Run:
    """A learner on one mesh with its first segments run: ``trains`` [SEGMENTS + 1] and ``metrics``
    [SEGMENTS] in numpy.
    """

    def __init__(self, mesh, seeds):
        self.traces = collections.Counter()
        algorithm, pretrained = make_algorithm(self.traces)
        self.learner = loop.build_learner(
            algorithm, SPECS, mesh=mesh, seeds=len(seeds), collection=COLLECTION
        )
        self.train = self.learner.init(jnp.asarray(seeds), pretrained)
        self.trains, self.metrics, self.traced = [host(self.train)], [], []
        for _ in range(SEGMENTS):
            self.train, metrics = self.learner.segment(self.train)
            self.trains.append(host(self.train))
            self.metrics.append(jax.device_get(metrics))
            self.traced.append(dict(self.traces))


@pytest.fixture(scope="module")
def lone(devices):
    """Seed 3 by itself on one device."""
    return Run(devices(), [3])


@pytest.fixture(scope="module")
def eight(devices):
    """Seeds 0 to 7, two on each of four devices."""
    return Run(devices(seed=4), list(range(8)))


@pytest.fixture(scope="module")
def square(devices):
    """Seeds 3 and 4 on a mesh of (2, 2): each seed's environments and batches are split in two."""
    return Run(devices(seed=2, data=2), [3, 4])


@pytest.fixture(scope="module")
def four(devices):
    """Seed 3 on four devices, two environments each."""
    return Run(devices(data=4), [3])


def of_seed(train, index):
    """One seed's part of a Train; clock and base are everybody's."""
    return jax.tree.map(
        lambda x: x[index], train._replace(learner=train.learner._replace(clock=None, base=None))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("other", "index"), [("eight", 3), ("square", 0), ("four", 0)])
def test_a_seed_is_the_same_run_alone_among_others_and_over_devices(other, index, lone, request):
    """Keys and the beginning exactly; all the rest up to rounding, since XLA fuses the programs
    differently.
    """
    run = request.getfixturevalue(other)
    for n in range(SEGMENTS + 1):
        actual, expected = of_seed(run.trains[n], index), of_seed(lone.trains[n], 0)
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if n else {"rtol": 0, "atol": 0}
        jax.tree.map(
            lambda a, b, near=tolerance: np.testing.assert_allclose(a, b, **near), actual, expected
        )
        np.testing.assert_array_equal(actual.learner.key, expected.learner.key)
        assert run.trains[n].learner.clock == n
    for n in range(SEGMENTS):
        for name, value in lone.metrics[n].items():
            np.testing.assert_allclose(
                run.metrics[n][name][index], value[0], rtol=1e-4, atol=1e-5, err_msg=name
            )


@pytest.mark.slow
def test_an_update_crosses_the_devices_once(four):
    """The gradients of actor and critics in one all-reduce; nothing else within the loop of two
    updates.
    """
    text = four.learner.compile(four.train).learn.as_text()
    updates = [each.kind for each in collectives(text) if each.times == 2]
    assert updates == ["all-reduce"]


@pytest.mark.slow
def test_seeds_differ(eight):
    train = eight.trains[1]
    for part in (train.env_state, train.learner.key, train.learner.buffer_state):
        leaf = max(jax.tree.leaves(part), key=np.size)
        assert len(np.unique(leaf.reshape(8, -1), axis=0)) == 8


def test_segment_is_traced_once(lone, square):
    """Later calls trace neither the collection nor the updates again."""
    for run in (lone, square):
        assert run.traced[0].keys() == {"act", "update"}
        assert run.traced == [run.traced[0]] * SEGMENTS


def test_a_later_segment_only_runs_on_the_devices_and_consumes_its_train(square):
    """No transfer from or to the host, no tracing; every buffer of the Train passed in is
    donated.
    """
    before, clock = square.train, int(square.train.learner.clock)
    with jax.transfer_guard("disallow"), jax.no_tracing(True):
        square.train, metrics = square.learner.segment(before)
        jax.block_until_ready((square.train, metrics))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    assert square.train.learner.clock == clock + 1


def test_the_warm_up_collects_and_changes_no_parameter(lone):
    for n in range(SEGMENTS):
        before, after = lone.trains[n], lone.trains[n + 1]
        same = all(
            jax.tree.leaves(jax.tree.map(np.array_equal, before.learner.state, after.learner.state))
        )
        assert same == (n < COLLECTION.warmup_segments)
        learned = {
            name: value for name, value in lone.metrics[n].items() if name.startswith("train/")
        }
        assert all(value == 0 for value in learned.values()) == (n < COLLECTION.warmup_segments)
        assert not np.array_equal(
            before.learner.buffer_state.steps.obs, after.learner.buffer_state.steps.obs
        )
        assert after.learner.state.updates == 2 * max(n + 1 - COLLECTION.warmup_segments, 0)


@pytest.fixture(scope="module")
def recorded(lone):
    """The rows of the first three segments in order, leaves [9, N, h, ...]: the ring is full and
    has not wrapped.
    """
    return jax.tree.map(lambda x: x[0], lone.trains[3].learner.buffer_state.steps)


def test_records_are_what_the_environment_does(recorded):
    """Every executed step, run again from its observation alone, gives the recorded successor,
    reward and end.
    """
    steps = jax.tree.map(lambda x: x[recorded.executed], recorded)
    physics = reach.Physics(jnp.asarray(steps.obs[:, :2]), jnp.asarray(steps.obs[:, 2:]))
    fresh = jax.vmap(TASK.reset)(jax.random.split(jax.random.key(0), len(steps.obs)))
    new = jax.jit(jax.vmap(TASK.step))(
        fresh._replace(physics=physics, obs=jnp.asarray(steps.obs)), jnp.asarray(steps.action)
    )
    np.testing.assert_allclose(steps.next_obs, new.obs, atol=1e-6)
    for name in ("reward", "terminated", "success"):
        np.testing.assert_array_equal(getattr(steps, name), getattr(new, name))


def test_episodes_are_contiguous_cut_at_their_end_and_restarted_from_the_pool(recorded):
    """Column by column: a step starts where the one before it ended; after an end nothing runs
    until the next chunk, which begins at a start state, of which a segment knows no more than its
    pool.
    """
    rows, columns, h = recorded.reward.shape
    starts = [set() for _ in range(rows // COLLECTION.unroll_chunks)]
    kinds = set()
    for column in range(columns):
        time, alive, successor = 0, True, None
        for row in range(rows):
            if not alive:
                start = recorded.obs[row, column, 0]
                starts[row // COLLECTION.unroll_chunks].add(tuple(start))
                assert start[0] == np.float32(-0.8)
                time, alive = 0, True
            for i in range(h):
                at = (row, column, i)
                assert recorded.executed[at] == alive
                if not alive:
                    continue
                if time:
                    np.testing.assert_array_equal(recorded.obs[at], successor)
                successor, time = recorded.next_obs[at], time + 1
                assert recorded.truncated[at] == (
                    time == TASK.specs.horizon and not recorded.terminated[at]
                )
                alive = not (recorded.terminated[at] or recorded.truncated[at])
                kinds |= (
                    {"success"}
                    if recorded.success[at]
                    else {"time limit"}
                    if recorded.truncated[at]
                    else set()
                )
    assert kinds == {"success", "time limit"}
    assert all(len(seen) <= COLLECTION.reset_pool for seen in starts)
    assert any(len(seen) > 1 for seen in starts)


def test_episode_sums_are_those_of_the_records(lone, recorded):
    """By the segment in which an episode ended, and how many segments earlier it started."""
    rows, columns, h = recorded.reward.shape
    ages = 1 + rollout.segments_spanned(TASK.specs.horizon, h, COLLECTION.unroll_chunks)
    assert ages == 2
    sums = np.zeros((rows // COLLECTION.unroll_chunks, ages, 4))
    for column in range(columns):
        gained = length = first = 0
        for row, i in np.ndindex(rows, h):
            at = (row, column, i)
            if not recorded.executed[at]:
                continue
            if length == 0:
                first = row
            gained, length = gained + recorded.reward[at], length + 1
            if recorded.terminated[at] or recorded.truncated[at]:
                segment = row // COLLECTION.unroll_chunks
                age = segment - first // COLLECTION.unroll_chunks
                sums[segment, age] += 1, recorded.success[at], gained, length
                gained = length = 0
    assert sums[..., 0].sum(0).min() > 0  # some end in their segment, some in the next
    for n, expected in enumerate(sums):
        names = ("episodes", "successes", "returns", "lengths")
        np.testing.assert_allclose(
            [lone.metrics[n][f"episode/{name}"][0] for name in names], expected.T, rtol=1e-6
        )
        assert not lone.metrics[n]["episode/diverged"].any()


@pytest.mark.parametrize(
    ("mesh", "seeds", "changes", "message"),
    [
        (
            {"seed": 2},
            3,
            {},
            "seeds is 3; it must be a positive multiple of the 2 devices of the seed axis",
        ),
        (
            {"data": 4},
            1,
            {"envs": 6},
            "finetune.envs is 6; it must be a positive multiple of the 4 devices",
        ),
        (
            {"data": 4},
            1,
            {"reset_pool": 2},
            "finetune.reset_pool is 2; it must be a positive multiple of the 4 devices",
        ),
        (
            {"data": 1},
            1,
            {"reset_pool": 0},
            "finetune.reset_pool is 0; it must be a positive multiple of the 1 devices",
        ),
    ],
)
def test_sizes_that_do_not_divide_over_the_devices_are_refused(
    devices, mesh, seeds, changes, message
):
    algorithm, _ = make_algorithm(collections.Counter())
    with pytest.raises(ValueError, match=message):
        loop.build_learner(
            algorithm,
            SPECS,
            mesh=devices(**mesh),
            seeds=seeds,
            collection=COLLECTION._replace(**changes),
        )


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(devices):
    algorithm, _ = make_algorithm(collections.Counter())
    odd = algorithm._replace(source=algorithm.source._replace(batch_size=18))
    with pytest.raises(
        ValueError, match="batch_size is 18; it must be a positive multiple of the 4 devices"
    ):
        loop.build_learner(odd, SPECS, mesh=devices(data=4), seeds=1, collection=COLLECTION)


@pytest.mark.slow
def test_cloning_shares_its_data_and_is_the_same_on_any_mesh(devices, recorded):
    """Seed 1 alone on one device and among two over (2, 2), to a thousandth of Adam's step, which
    magnifies the rounding of small gradients; the demonstrations carry no seed axis.
    """
    steps = jax.tree.map(
        lambda x: np.moveaxis(x, 2, 1).reshape(-1, x.shape[1], *x.shape[3:]), recorded
    )
    source = batch_sources.dataset(
        demonstrations_of(steps), chunk=4, batch_size=8, updates=3, gamma=1.0
    )
    policy = policy_lib.make_policy(PolicyConfig(chunk=4, hidden=(8,), steps=2), SPECS)
    algorithm = bc.make(bc.Config(learning_rate=0.01), policy, source)

    def clone(mesh, seeds):
        cloning = loop.build_learner(algorithm, SPECS, mesh=mesh, seeds=len(seeds))
        train, metrics = cloning.segment(
            cloning.init(jnp.asarray(seeds), {"normalizer": Normalizer(jnp.zeros(4), jnp.ones(4))})
        )
        jax.tree.map(np.testing.assert_array_equal, train.learner.data, source.data)
        return host(train.learner.state), jax.device_get(metrics)

    (alone, loss), (among, losses) = clone(devices(), [1]), clone(devices(seed=2, data=2), [0, 1])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[1], b[0], rtol=0, atol=1e-5), among, alone
    )
    np.testing.assert_allclose(
        losses["train/imitation_loss"][1], loss["train/imitation_loss"][0], rtol=1e-5
    )
