"""Playing whole populations: thousands of episodes in one compiled call.

Legend: D weights of a controller, L lanes (one episode each), P members, R rollouts a member.
Every member meets the same R starts and the same R streams of noise (common random numbers), so
a lane is a pair (member, rollout) and its result depends on nothing else: not on the batch it is
computed in, the device, or the lanes beside it.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh

from dreamjax.training.devices import device_memory
from dreamjax.training.mesh import AXIS, SPLIT, WHOLE

Policy = Callable[[jax.Array, jax.Array], jax.Array]  # (weights [D], obs) -> action
Watch = Callable[[jax.Array, float], Mapping[str, float]]  # (weights [D], return) -> what is logged

COMPACTION = 0.7  # on a CPU a batch shrinks to this share of its size, again and again
SMALLEST_BATCH = 4  # below it, smaller batches are no faster
STRIDE = 10  # steps between two looks of an accelerator at who is alive
MEMORY_SHARE = 0.5  # of a device's memory that lanes may fill
EVALUATION = 2**31  # names the evaluations' branch of the keys: no step has that number
COPIES = 4  # a step's memory, in lanes' own sizes: before, after and between


class Lanes(struct.PyTreeNode):
    """Episodes in flight, [L] of everything."""

    lane: jax.Array  # int32, where the episode belongs in the results
    rollout: jax.Array  # int32, which shared start and noise it has
    weights: jax.Array  # [L, D] its controller
    state: Any
    obs: jax.Array
    score: jax.Array  # float32, return so far
    steps: jax.Array  # int32, steps survived so far
    alive: jax.Array  # bool, neither terminated nor truncated


class Dreamt(struct.PyTreeNode):
    """What episodes came to, [P, R] of each."""

    score: jax.Array  # float32, their returns
    steps: jax.Array  # int32, their lengths


def evaluation_key(key: jax.Array, number: jax.Array) -> jax.Array:
    """The key of evaluation `number`, which shares nothing with those of the steps between.

    `fold_in(k, i)` is `split(k)[i]`, so this is a branch that no step can have.
    """
    return jax.random.fold_in(jax.random.fold_in(key, EVALUATION), number)


def keep_best(state: Any, weights: jax.Array, score: jax.Array) -> tuple[Any, jax.Array]:
    """`state` with `weights` [D] as its `best` if their `score` is its highest; and the score."""
    best = jnp.where(score > state.best_score, weights, state.best)
    return state.replace(best=best, best_score=jnp.maximum(score, state.best_score)), score


def evaluated(evaluation, state, weights, number, env_params, watch) -> tuple[Any, dict]:
    """`state` after evaluation `number`, of `weights` [D]; and what is logged, `watch`'s too."""
    state, score = evaluation(state, jnp.int32(number), env_params)
    told = {"eval": float(score), "best_eval": float(state.best_score)}
    if watch is not None:
        told |= watch(np.asarray(weights), told["eval"])
    return state, told


def batch_sizes(lanes: int, platform: str) -> tuple[int, ...]:
    """Batch sizes that `lanes` episodes pass through as they end.

    On a CPU a smaller batch is proportionally faster; an accelerator runs the whole batch as
    fast as part of it, so it only stops early.
    """
    sizes = [lanes]
    while platform == "cpu" and sizes[-1] > SMALLEST_BATCH:
        sizes.append(max(SMALLEST_BATCH, int(sizes[-1] * COMPACTION)))
    return tuple(sizes)


def lanes_that_fit(env: Any, env_params: Any, num_params: int) -> int:
    """Lanes that fit on a device, as estimated uncompiled; ValueError if not even one does."""
    first = jax.eval_shape(env.reset_env, jax.random.key(0), env_params)
    held = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(first))
    need, have = COPIES * (held + 4 * num_params), MEMORY_SHARE * device_memory()
    if need > have:
        raise ValueError(
            f"one episode needs {need / 1e6:.0f} MB but the device offers {have / 1e6:.0f} MB; "
            "use a smaller world"
        )
    return int(have // need)


def rollout(
    key: jax.Array,
    env: Any,
    env_params: Any,
    policy: Policy,
    weights: jax.Array,
    num_rollouts: int,
    *,
    mesh: Mesh | None = None,
    at_once: int | None = None,
    sizes: tuple[int, ...] | None = None,
) -> Dreamt:
    """Play `num_rollouts` episodes with each of P controllers; for use under `jit`.

    Finished episodes are dropped from a batch as soon as it can shrink to the next of `sizes`,
    and all stops with the last one; none of the keyword arguments changes a result.

    Args:
      key: consumed.
      env, env_params: a gymnax environment. One that splits its step into `draw_noise` and
        `transition`, as `DreamEnv` does, has its noise drawn once for the whole population.
      policy: `(weights [D], obs) -> action`.
      weights: [P, D].
      num_rollouts: R.
      mesh: devices that share the lanes; None is the default device alone.
      at_once: lanes a device plays at once; more are played piece by piece. None is all.
      sizes: descending batch sizes of a piece; by default the device's.
    """
    num_lanes = len(weights) * num_rollouts
    devices = mesh.size if mesh else 1
    pieces = -(-num_lanes // (devices * (at_once or num_lanes)))
    length = -(-num_lanes // (devices * pieces))
    lane = jnp.arange(devices * pieces * length, dtype=jnp.int32).reshape(devices, pieces, length)
    sizes = sizes or batch_sizes(length, jax.default_backend())

    def on_device(lane, key, env_params, weights):
        play = functools.partial(_play, key, env, env_params, policy, weights, num_rollouts, sizes)
        found = jax.lax.map(play, lane[0])
        return jax.lax.all_gather(found, AXIS, tiled=True) if mesh else found

    if mesh:
        specs: dict[str, Any] = {"in_specs": (SPLIT, WHOLE, WHOLE, WHOLE), "out_specs": WHOLE}
        on_device = jax.shard_map(on_device, mesh=mesh, check_vma=False, **specs)
    found = on_device(lane, key, env_params, weights)
    shape = (len(weights), num_rollouts)
    return Dreamt(*(x.reshape(-1)[:num_lanes].reshape(shape) for x in found))


def _play(key, env, env_params, policy, weights, num_rollouts, sizes, lane):
    """Returns and lengths of the episodes `lane` [L], each [L]."""
    key_reset, key_noise = jax.random.split(jax.random.clone(key))  # of every piece the same
    lanes = _start(key_reset, env, env_params, weights, num_rollouts, lane)
    noise_keys = jax.random.split(key_noise, num_rollouts)
    step = functools.partial(_step, env, env_params, policy, noise_keys)
    first, time = lane[0], jnp.int32(0)
    score, steps = jnp.zeros(len(lane), jnp.float32), jnp.zeros(len(lane), jnp.int32)
    for size, smaller in zip(sizes, (*sizes[1:], 0), strict=True):
        lanes = _compact(lanes, size)
        time, lanes = _step_until(step, time, lanes, smaller)
        place = lanes.lane - first
        score, steps = score.at[place].set(lanes.score), steps.at[place].set(lanes.steps)
    return score, steps


def _start(key, env, env_params, weights, num_rollouts, lane) -> Lanes:
    """The episodes `lane` at step 0; lane = member * R + rollout, and those past P * R are void."""
    member, rollout = lane // num_rollouts, lane % num_rollouts
    keys = jax.random.split(key, num_rollouts)
    obs, state = _per_rollout(lambda key: env.reset_env(key, env_params), keys, rollout)
    return Lanes(
        lane=lane,
        rollout=rollout,
        weights=weights[member],
        state=state,
        obs=obs,
        score=jnp.zeros(len(lane), jnp.float32),
        steps=jnp.zeros(len(lane), jnp.int32),
        alive=member < len(weights),
    )


def _per_rollout(function: Callable, keys: jax.Array, rollout: jax.Array) -> Any:
    """`function(keys[rollout])` for every lane, computed once where lanes share a rollout."""
    if len(rollout) <= len(keys):
        return jax.vmap(function)(keys[rollout])
    return jax.tree.map(lambda x: x[rollout], jax.vmap(function)(keys))


def _compact(lanes: Lanes, size: int) -> Lanes:
    """The first `size` lanes, those alive before the others."""
    if size == len(lanes.lane):
        return lanes
    order = jnp.argsort(~lanes.alive, stable=True)[:size]
    return jax.tree.map(lambda x: x[order], lanes)


def _step_until(step, time, lanes: Lanes, smaller: int) -> tuple[jax.Array, Lanes]:
    """Step until at most `smaller` lanes are alive.

    To look how many are makes an accelerator wait for its host: there it is done every few steps.
    """

    def one(loop):
        return loop[0] + 1, step(*loop)

    def few(loop):
        return jax.lax.fori_loop(0, STRIDE, lambda _, loop: one(loop), loop)

    body = one if jax.default_backend() == "cpu" else few
    return jax.lax.while_loop(lambda loop: jnp.sum(loop[1].alive) > smaller, body, (time, lanes))


def _step(env, env_params, policy, noise_keys, time: jax.Array, lanes: Lanes) -> Lanes:
    """One step of every lane; finished lanes step on, uncounted."""
    draw = getattr(env, "draw_noise", lambda key: key)
    transition = getattr(env, "transition", env.step_env)
    noise = _per_rollout(lambda key: draw(jax.random.fold_in(key, time)), noise_keys, lanes.rollout)
    action = jax.vmap(policy)(lanes.weights, lanes.obs)
    obs, state, reward, terminated, _ = jax.vmap(transition, (0, 0, 0, None))(
        noise, lanes.state, action, env_params
    )
    truncated = jax.vmap(env.is_truncated, (0, None))(state, env_params)
    return lanes.replace(
        state=state,
        obs=obs,
        score=lanes.score + jnp.where(lanes.alive, reward, 0.0),
        steps=lanes.steps + lanes.alive.astype(jnp.int32),
        alive=lanes.alive & ~(terminated | truncated),
    )
