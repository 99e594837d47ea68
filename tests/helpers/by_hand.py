"""Networks, gradients and Adam by hand, in float64 numpy."""

import jax
import numpy as np
import optax


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def mlp(params, *inputs):
    """A ``networks.Critic`` or ``Head`` on inputs [..., I] whose leading axes broadcast: [...,
    out].
    """
    params = float64(params)
    lead = np.broadcast_shapes(*(np.shape(x)[:-1] for x in inputs))
    y = np.concatenate(
        [np.broadcast_to(np.asarray(x, np.float64), (*lead, np.shape(x)[-1])) for x in inputs], -1
    )
    norms = sorted(name for name in params if name.startswith("LayerNorm"))
    layers = ["SplitDense_0", *(f"Dense_{i}" for i in range(len(norms)))]
    for layer, norm in zip(layers, [*norms, None], strict=True):
        y = y @ params[layer]["kernel"] + params[layer]["bias"]
        if norm:
            y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
            y = y * params[norm]["scale"] + params[norm]["bias"]
            y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y


def heads(params, obs, action):
    """[M, ...]: the value of each critic of an ensemble."""
    params = float64(params)
    members = len(jax.tree.leaves(params)[0])
    return np.stack(
        [
            mlp(jax.tree.map(lambda x, m=m: x[m], params), obs, action)[..., 0]
            for m in range(members)
        ]
    )


def gradient(loss, params):
    """Central differences of a float64 loss, number by number."""
    leaves, tree = jax.tree.flatten(float64(params))
    found = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, slope in zip(leaves, found, strict=True):
        for i in np.ndindex(leaf.shape):
            start, sides = leaf[i], []
            for change in (1e-6, -1e-6):
                leaf[i] = start + change
                sides.append(loss(jax.tree.unflatten(tree, leaves)))
            leaf[i], slope[i] = start, (sides[0] - sides[1]) / 2e-6
    return jax.tree.unflatten(tree, found)


def norm(tree):
    return np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def assert_first_adam_step(loss, before, after, opt, rate, clip=np.inf):
    """Adam's memory is a tenth of the clipped gradient, and its first step −rate·g/(|g| + 1e-8).
    Returns ‖g‖.
    """
    slope = gradient(loss, before)
    size = norm(slope)
    slope = jax.tree.map(lambda g: g * min(1.0, clip / size), slope)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(slope))

    def memory(mu, g):
        np.testing.assert_allclose(10.0 * np.asarray(mu), g, rtol=1e-3, atol=1e-4 * largest)

    def step(old, new, g):
        felt = np.abs(g) > 1e-3 * largest
        expected = np.asarray(old) - rate * g / (np.abs(g) + 1e-8)
        np.testing.assert_allclose(np.asarray(new)[felt], expected[felt], rtol=1e-5, atol=1e-5)

    jax.tree.map(memory, optax.tree.get(opt, "mu"), slope)
    jax.tree.map(step, before, after, slope)
    return size


def assert_one_line(error):
    assert "\n" not in str(error.value)


def watch(monkeypatch, cls, *names):
    """Note the calls of methods of a class: {name: [(arguments without self, result)]}."""
    calls = {name: [] for name in names}

    def noted(name, method):
        def call(self, *args):
            result = method(self, *args)
            calls[name].append((args, result))
            return result

        return call

    for name in names:
        monkeypatch.setattr(cls, name, noted(name, getattr(cls, name)))
    return calls


def pairs(q):
    """The smaller of two of the heads q [M, ...], for each pair."""
    members = range(len(q))
    return [np.minimum(q[i], q[j]) for i in members for j in members if i < j]


def vector(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
