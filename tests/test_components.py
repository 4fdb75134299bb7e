"""The directions in which C is evolved: as large as their components, as many as there are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import CONTROLLER, Imitate, ProbeParams

from dreamjax.controller.components import SPREAD, directions
from dreamjax.controller.distributions import distribution_of
from dreamjax.controller.evolution import EvolveConfig, evolve
from dreamjax.controller.model import LinearController
from dreamjax.controller.player import Player
from dreamjax.tasks import CAR_RACING, TAKE_COVER
from dreamjax.training.checkpoint import Store
from dreamjax.training.settings import SettingError

TARGET = jnp.array([1.0, -0.5, 0.25])
SHORT = {"population": 16, "rollouts": 8, "eval_every": 10, "eval_rollouts": 32}
AXES = jnp.array([[1.0, -0.5, 0.0], [0.0, 0.0, 1.0]])  # between them lies TARGET


def examples(features=6):
    """Features of sizes from 0.01 to 100, of means that are not 0; the last is the one before."""
    rng = np.random.default_rng(0)
    x = (2 + rng.normal(size=(400, features))) * 10.0 ** np.linspace(-2, 2, features)
    x[:, -1] = 3 * x[:, -2]
    return x


def linear(task, features=6):
    return LinearController(features, distribution_of(task.actions), task.controller_bias)


def test_directions_move_outputs_apart_by_as_much_as_components_vary():
    controller, x = linear(TAKE_COVER), examples()
    found = directions(controller, x, 4)
    out = np.asarray(jax.vmap(lambda w: controller.outputs(w, jnp.float32(x)))(found))[..., 0]
    variances = np.linalg.eigvalsh(np.corrcoef(x.T))[::-1][:4]
    variances *= SPREAD**2 / variances.sum()
    np.testing.assert_allclose(np.cov(out, bias=True), np.diag(variances), atol=0.05)
    assert len(directions(controller, x, 99)) == 5, "six features, of which two say the same"


def test_directions_of_several_outputs_with_a_bias():
    controller, x = linear(CAR_RACING), examples()
    found = directions(controller, x, 2)
    assert found.shape == ((2 + 1) * 3, controller.num_params)
    out = np.asarray(jax.vmap(lambda w: controller.outputs(w, jnp.float32(x)))(found))
    out = out.reshape(3, 3, len(x), 3)  # direction, its output, example, output
    gram = np.einsum("aino,bjno->aibj", out, out).reshape(9, 9) / len(x)
    np.testing.assert_allclose(gram, np.diag(np.diag(gram)), atol=0.05)
    first, along = np.diag(gram)[:3], np.diag(gram)[3:].reshape(2, 3)
    np.testing.assert_allclose(first, 1, atol=1e-3)
    np.testing.assert_allclose(along.sum(axis=0), SPREAD**2, rtol=1e-3)
    np.testing.assert_allclose(out[0], np.broadcast_to(np.eye(3)[:, None], out[0].shape), atol=1e-3)
    assert not out[1, 0, :, 1:].any(), "a direction moves one output"


def test_a_feature_that_never_changes_does_no_harm():
    x = examples()
    x[:, 2] = 0
    assert np.isfinite(directions(linear(CAR_RACING), x, 9)).all()


def imitated(store=None, generations=30, player=CONTROLLER, **more):
    config = EvolveConfig(generations=generations, **SHORT)
    params = ProbeParams(target=TARGET, max_steps_in_episode=jnp.int32(20))
    return evolve(Imitate(), params, player, config, 0, store=store, **more)


def test_weights_move_along_the_directions_alone():
    found = imitated(directions=AXES)
    np.testing.assert_allclose(found.best, TARGET, atol=0.05)
    np.testing.assert_allclose(found.mean, TARGET, atol=0.05)
    assert found.es.mean.shape == (2,)
    np.testing.assert_allclose(found.best[1], -found.best[0] / 2, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.numerics
def test_it_resumes_along_its_own_directions(tmp_path):
    straight = imitated(directions=AXES)
    imitated(Store(tmp_path), 10, directions=AXES)
    resumed = imitated(Store(tmp_path), directions=-AXES)  # as another machine might find them
    np.testing.assert_array_equal(resumed.mean, straight.mean)
    np.testing.assert_array_equal(resumed.best, straight.best)


def test_a_start_along_directions_is_refused():
    with pytest.raises(
        ValueError, match="a player has weights already; along directions a form begins at 0"
    ):
        imitated(directions=AXES, player=Player(CONTROLLER, TARGET))
    with pytest.raises(SettingError, match="components must be at least 1, got 0"):
        EvolveConfig(components=0)
