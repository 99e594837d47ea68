"""The factor of the learning rate in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from gcp_jax.core.adaptive_rate import FACTOR_RANGE, SPEED, adapted_factor


@pytest.mark.parametrize(
    ("clip_fraction", "exponent"),
    [(0.2, 0.0), (0.0, 1.0), (0.1, 0.5), (0.3, -0.5), (0.4, -1.0), (1.0, -1.0)],
)
def test_the_factor_follows_the_distance_from_the_target(clip_fraction, exponent):
    factor = adapted_factor(jnp.float32(0.5), clip_fraction=jnp.float32(clip_fraction), target=0.2)
    np.testing.assert_allclose(factor, 0.5 * np.exp(SPEED * exponent), rtol=1e-6)


@pytest.mark.parametrize(("end", "clip_fraction"), [(FACTOR_RANGE[0], 1.0), (FACTOR_RANGE[1], 0.0)])
def test_the_factor_stays_within_its_range(end, clip_fraction):
    factor = adapted_factor(jnp.float32(end), clip_fraction=jnp.float32(clip_fraction), target=0.2)
    np.testing.assert_allclose(factor, end)
