"""Counting the matrix products of a program, and what benchmarks make of paired times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import timing, update
from gcp_jax.core.bounded_loop import bounded_loop
from gcp_jax.experiments.plan import flops

A, B = jnp.ones((3, 4)), jnp.ones((4, 5))


def test_a_product_has_its_operations():
    [(product, times)] = flops.count(jnp.matmul, A, B).items()
    assert (product.lhs, product.rhs, times, product.flops) == ((3, 4), (4, 5), 1, 2 * 3 * 4 * 5)


def test_a_batched_product_has_those_of_every_member():
    [(product, _)] = flops.count(
        jax.vmap(jnp.matmul), jnp.ones((6, 3, 4)), jnp.ones((6, 4, 5))
    ).items()
    assert product.flops == 6 * 2 * 3 * 4 * 5


def test_bodies_of_scans_count_as_often_as_they_run_and_of_branches_the_larger():
    square = jnp.ones((4, 4))

    def program(x, flag):
        x = jax.lax.scan(lambda x, _: (x @ square, None), x, None, length=7)[0]
        return jax.lax.cond(
            flag,
            lambda x: x @ square @ square,
            lambda x: x @ square,
            jax.jit(jnp.matmul)(x, square),
        )

    assert flops.flops(flops.count(program, A, True)) == (7 + 1 + 2) * 2 * 3 * 4 * 4


def test_products_in_a_loop_of_unknown_length_are_refused():
    with pytest.raises(ValueError, match="the number of turns is unknown"):
        flops.count(
            lambda x: jax.lax.while_loop(lambda x: x[0, 0] < 9, lambda x: x @ jnp.ones((4, 4)), x),
            A,
        )


def test_products_in_a_bounded_loop_count_as_often_as_it_may_turn_or_as_given():
    """Also over several seeds, and inside another bounded loop."""
    square = jnp.ones((4, 4))

    def inner(x, turns):
        return bounded_loop(turns, 5, lambda _, x: x @ square, x)

    def outer(x, turns):
        return bounded_loop(turns, 3, lambda _, x: inner(x, turns), x @ square)

    once = 2 * 3 * 4 * 4
    assert flops.flops(flops.count(outer, A, 2)) == (1 + 3 * 5) * once
    assert flops.flops(flops.count(outer, A, 2, turns=2)) == (1 + 2 * 2) * once
    seeds = flops.count(jax.vmap(inner), jnp.stack([A, A]), jnp.array([1, 2]))
    assert flops.flops(seeds) == 2 * 5 * once


def test_counted_operations_equal_those_that_xla_estimates_where_nothing_loops():
    def program(a, b):
        return a @ b

    found = flops.flops(flops.count(program, A, B))
    assert found == jax.jit(program).lower(A, B).compile().cost_analysis()["flops"]


def test_a_product_alone_is_that_product():
    [(product, _)] = flops.count(jnp.matmul, A, B).items()
    assert flops.alone({product: 1})[product]().shape == (3, 5)


def test_times_are_paired_by_run():
    found = timing.paired_ratio([1.0, 3.0, 2.0], [2.0, 2.0, 2.0])
    assert found.figures() == {"ratio": 1.0, "spread": 1.0}


def test_every_program_is_run_in_turn():
    order = []
    spent = timing.measure({name: lambda name=name: order.append(name) for name in "ab"}, 2)
    assert order == list("abab" + "ab") and all(
        len(times.wall) == len(times.cpu) == 2 for times in spent.values()
    )


class Clock:
    """A process of which the first ``busy`` looks find a thread at work."""

    def __init__(self, busy):
        self.busy = busy
        self.now = 0.0
        self.processor = 0.0
        self.looks = 0

    def perf_counter(self):
        return self.now

    def process_time(self):
        return self.processor

    def sleep(self, seconds):
        self.now += seconds
        self.processor += seconds if self.looks < self.busy else 0.01 * seconds
        self.looks += 1


@pytest.mark.parametrize(("busy", "looks"), [(0, 1), (3, 4)])
def test_a_program_is_timed_when_the_threads_of_the_last_one_have_ended(busy, looks, monkeypatch):
    clock = Clock(busy)
    monkeypatch.setattr(timing, "time", clock)
    timing.wait_until_idle()
    assert clock.looks == looks


def test_a_process_that_is_never_idle_is_timed_after_a_while(monkeypatch):
    clock = Clock(busy=10**9)
    monkeypatch.setattr(timing, "time", clock)
    timing.wait_until_idle()
    assert clock.now == pytest.approx(timing.LONGEST_WAIT, abs=2 * timing.POLL_SECONDS)


@pytest.mark.parametrize("name", ["ogpo 64×16", "dppo 5000×10"])
def test_an_update_is_made_up_and_its_products_found(name):
    """On and off policy; traced only, with small networks."""
    function, inputs = update.make_update(update.shrink(update.CASES[name]))
    found = flops.count(function, *inputs)
    assert flops.flops(found) > 0 and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(inputs[1])
    )


class HandCount:
    """Operations of OGPO's update by the sizes of its networks, one method for each kind of call.

    A layer costs 2·rows·inputs·outputs forward, as much for the gradient of its kernel, and as much
    for that of its input if something before it learns. With more than two axes the gradients of
    biases and of what is broadcast are products with ones: 2·rows·width.
    """

    OBS, ACTION, TIME = 23, 28, 32

    def __init__(self, case):
        self.case = case
        self.steps = case.policy.steps
        self.states = case.batch
        self.chains = case.fields["chains"]

    def layers(self, rows, widths):
        return sum(2 * rows * a * b for a, b in zip(widths, widths[1:], strict=False))

    def denoise(self, states, rows, times):
        """One evaluation: the observation's part once a state, the time's part once a time."""
        hidden = self.case.policy.hidden
        first = 2 * hidden[0] * (states * self.OBS + rows * self.ACTION + times * self.TIME)
        time = self.layers(times, (self.TIME, 2 * self.TIME, self.TIME))
        return first + time + self.layers(rows, (*hidden, self.ACTION))

    def sample(self, states, count):
        """K steps; the observation is encoded once."""
        encode = 2 * states * self.OBS * self.case.policy.hidden[0]
        rows = states * count
        return encode + self.steps * (self.denoise(0, rows, 1))

    def denoise_gradient(self, states, rows, times):
        """Forward, kernels, inputs but those of the first layer's x and obs and of the first time
        layer.
        """
        hidden = self.case.policy.hidden
        inputs = self.layers(rows, (*hidden, self.ACTION)) + 2 * times * self.TIME * hidden[0]
        inputs += self.layers(times, (2 * self.TIME, self.TIME))
        return 2 * self.denoise(states, rows, times) + inputs

    def block_density(self, chains):
        """Densities of all points [N, K, D] of N chains at once, where the parts of obs and time
        are broadcast.
        """
        hidden = self.case.policy.hidden
        rows = chains * self.steps
        broadcast = 2 * 2 * rows * hidden[0]
        biases = 2 * rows * (sum(hidden[1:]) + self.ACTION)
        biases += 2 * self.steps * 3 * self.TIME
        return self.denoise_gradient(chains, rows, self.steps) + broadcast + biases

    def actor(self, turns):
        """The densities of ``turns`` blocks of an eighth of the chains, and the cloning loss on as
        many transitions as states.
        """
        density = self.block_density(self.states * self.chains // 8)
        return turns * density + self.denoise_gradient(self.states, self.states, self.states)

    def q(self, states, rows):
        hidden = self.case.fields["critic_hidden"]
        first = 2 * hidden[0] * (states * self.OBS + rows * self.ACTION)
        return self.case.fields["critics"] * (first + self.layers(rows, (*hidden, 1)))

    def critic_step(self):
        """Target of one action a state, then forward, kernels and inputs of Q(s, a)."""
        hidden = self.case.fields["critic_hidden"]
        states = self.states
        learn = 2 * self.q(states, states)
        learn += self.case.fields["critics"] * self.layers(states, (*hidden, 1))
        return self.sample(states, 1) + self.q(states, states) + learn

    def update(self, turns):
        """Chains, their scores, the actor's step, and two steps of the critics."""
        chains = self.sample(self.states, self.chains)
        scores = self.q(self.states, self.states * self.chains)
        return chains + scores + self.actor(turns) + 2 * self.critic_step()


def test_the_operations_of_ogpos_update_are_those_counted_by_hand():
    """Of all blocks of the actor's step, and of three of them."""
    case = update.shrink(update.CASES["ogpo 64×16"])
    function, inputs = update.make_update(case)
    by_hand = HandCount(case)
    assert flops.flops(flops.count(function, *inputs)) == by_hand.update(turns=8)
    assert flops.flops(flops.count(function, *inputs, turns=3)) == by_hand.update(turns=3)
