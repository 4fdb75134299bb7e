"""What M predicts, as named heads: the next latent, an event, the reward, the end.

Original: `doomrnn/doomrnn.py`, `carracing/rnn/rnn.py`.
Shapes: Z latent size, K mixtures, J events, E ways to end; `...` is any number of batch axes.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
from flax import struct

MIN_LOGSTD = -7.0  # floor of the mixture's log standard deviation; the original has none
RARE = 5.0  # first log odds against an event, so that events explain only what is rare


class Mixture(struct.PyTreeNode):
    """K Gaussians for each latent dimension on its own (factored, as the original).

    Each array is float32 [..., K, Z], K first so that arithmetic runs along contiguous latents.
    """

    logits: jax.Array  # unnormalised log weights
    mean: jax.Array  # of each Gaussian
    logstd: jax.Array  # log standard deviations

    def log_prob(self, z: jax.Array) -> jax.Array:
        """log sum_k w_k N(z; mean_k, std_k) of each dimension of z, nats, float32 [..., Z].

        Of a density, so it may be positive.
        """
        deviation = (z[..., None, :] - self.mean) * jnp.exp(-self.logstd)
        joint = self.logits - self.logstd - 0.5 * deviation**2
        normaliser = _logsumexp(self.logits) + 0.5 * math.log(2 * math.pi)
        return _logsumexp(joint) - normaliser

    def nats(self, z: jax.Array) -> jax.Array:
        """Negative log density of z [..., Z] per dimension, float32 [...]."""
        return -self.log_prob(z).mean(axis=-1)

    def expected(self) -> jax.Array:
        """The mean z, float32 [..., Z]; of an `EventMixture`, without its events."""
        return (jax.nn.softmax(self.logits, axis=-2) * self.mean).sum(axis=-2)

    def sample(self, key: jax.Array, temperature: jax.Array | float) -> jax.Array:
        """Draw z, float32 [..., Z], at a temperature tau > 0; `key` is consumed."""
        key_component, key_value, key_event = jax.random.split(key, 3)
        shape = (*self.mean.shape[:-2], self.mean.shape[-1])
        uniform = jax.random.uniform(key_component, shape, jnp.float32)
        normal = jax.random.normal(key_value, shape, jnp.float32)
        event = jax.random.uniform(key_event, shape[:-1], jnp.float32)
        return self.sample_from(uniform, normal, temperature, event)

    def sample_from(
        self,
        uniform: jax.Array,
        normal: jax.Array,
        temperature: jax.Array | float,
        event: jax.Array,
    ) -> jax.Array:
        """`sample` as a pure function of its noise, for common random numbers.

        Each dimension draws its own component by inverse CDF from softmax(logits / tau), then
        mean + std * sqrt(tau) * normal: tau acts twice, as in doomrnn.py. NaN where the logits are.

        Args:
          uniform: float32 [..., Z] in [0, 1).
          normal: float32 [..., Z], standard normal.
          temperature: tau > 0, scalar.
          event: float32 [...] in [0, 1); unused here, `EventMixture` chooses with it.
        """
        del event
        logits = [self.logits[..., k, :] for k in range(self.logits.shape[-2])]
        top = functools.reduce(jnp.maximum, logits)  # no reduction over K: all is one kernel
        weights = [jnp.exp((logit - top) / temperature) for logit in logits]
        level = uniform * sum(weights)
        mean = logstd = jnp.full_like(level, jnp.nan)  # stays where level is NaN
        passed = jnp.zeros_like(level)
        for k, weight in enumerate(weights):
            reached = level >= passed
            mean = jnp.where(reached, self.mean[..., k, :], mean)
            logstd = jnp.where(reached, self.logstd[..., k, :], logstd)
            passed = passed + weight
        return mean + jnp.exp(logstd) * jnp.sqrt(temperature) * normal


class EventMixture(Mixture):
    """A `Mixture`, or instead of it an event: one of J Gaussians over all latents at once.

    A factored mixture draws each latent for itself. What changes them together, such as the red
    flash of a hit, it dreams in some latents alone, and M, which never saw half a flash, holds
    that for nothing: its dreams hardly hurt. Not in the paper; J = 0 is the paper's.
    """

    weights: jax.Array  # float32 [..., 1 + J], unnormalised log weights: no event, then each event
    event_mean: jax.Array  # float32 [..., J, Z]
    event_logstd: jax.Array  # float32 [..., J, Z]

    def nats(self, z: jax.Array) -> jax.Array:
        """Negative log density of z [..., Z] per dimension, float32 [...]."""
        deviation = (z[..., None, :] - self.event_mean) * jnp.exp(-self.event_logstd)
        density = -self.event_logstd - 0.5 * deviation**2 - 0.5 * math.log(2 * math.pi)
        usual = self.log_prob(z).sum(axis=-1, keepdims=True)
        each = jnp.concatenate((usual, density.sum(axis=-1)), axis=-1)
        total = jax.nn.logsumexp(jax.nn.log_softmax(self.weights) + each, axis=-1)
        return -total / z.shape[-1]

    def sample_from(self, uniform, normal, temperature, event) -> jax.Array:
        """As `Mixture.sample_from`; `event` decides by inverse CDF from softmax(weights / tau)."""
        z = super().sample_from(uniform, normal, temperature, event)
        share = jax.nn.softmax(self.weights / temperature)
        passed = jnp.zeros_like(share[..., 0])
        for j in range(self.event_mean.shape[-2]):
            passed = passed + share[..., j]
            spread = jnp.exp(self.event_logstd[..., j, :]) * jnp.sqrt(temperature)
            happened = self.event_mean[..., j, :] + spread * normal
            z = jnp.where((event >= passed)[..., None], happened, z)
        return z


class Prediction(struct.PyTreeNode):
    """What follows a step; of an M without a head its part is None."""

    latent: Mixture  # the next z
    end: jax.Array | None = None  # float32 [..., E], a logit for each way to end
    reward: jax.Array | None = None  # float32 [...], the reward to expect


def total_logit(end: jax.Array) -> jax.Array:
    """The logit [...] of any end, from those of each [..., E] as if they were independent."""
    ways = [end[..., k] for k in range(end.shape[-1])]
    # of two ways with odds a and b, either has the odds a + b + ab
    return functools.reduce(lambda a, b: jnp.logaddexp(jnp.logaddexp(a, b), a + b), ways)


Layout = dict[str, tuple[int, ...]]  # the shape of every head, in the order of M's outputs


def places(heads: Layout) -> dict[str, slice]:
    """Where each head's numbers are among M's outputs."""
    edges = itertools.accumulate(map(math.prod, heads.values()), initial=0)
    return {name: slice(*edge) for name, edge in zip(heads, itertools.pairwise(edges), strict=True)}


def named(out: jax.Array, heads: Layout) -> dict[str, jax.Array]:
    """M's outputs [..., width] by their heads."""
    where, batch = places(heads), out.shape[:-1]
    return {name: out[..., where[name]].reshape(*batch, *heads[name]) for name in heads}


def prediction(parts: dict[str, jax.Array], reward_scale: float) -> Prediction:
    """`Prediction` of named outputs; those of the reward count in `reward_scale`."""
    usual = parts["logits"], parts["mean"], jnp.maximum(parts["logstd"], MIN_LOGSTD)
    latent = Mixture(*usual)
    if "event_mean" in parts:
        spread = jnp.maximum(parts["event_logstd"], MIN_LOGSTD)
        latent = EventMixture(*usual, parts["event_weights"], parts["event_mean"], spread)
    reward = parts["reward"] * reward_scale if "reward" in parts else None
    return Prediction(latent, parts.get("end"), reward)


def _logsumexp(x: jax.Array) -> jax.Array:
    """log sum exp over K of [..., K, Z]."""
    top = jax.lax.stop_gradient(x.max(axis=-2, keepdims=True))
    return jnp.log(jnp.exp(x - top).sum(axis=-2)) + top[..., 0, :]
