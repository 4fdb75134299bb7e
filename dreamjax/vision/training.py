"""Training V on recorded frames.

"World Models" (Ha & Schmidhuber, 2018), appendix A.1; original file `doomrnn/vae_train.py`.
Shapes: B batch, Z latent. Several devices share a batch: each finds the gradient of its part.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx, struct
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from dreamjax.game import rollouts
from dreamjax.task import Task
from dreamjax.tasks import Colour
from dreamjax.training.checkpoint import Store
from dreamjax.training.devices import cast, product_dtype, theirs
from dreamjax.training.fit import fit
from dreamjax.training.logbook import Logbook
from dreamjax.training.mesh import AXIS, WHOLE, all_devices, devices_for, on_own, own_normal, split
from dreamjax.training.settings import SettingError, require_positive, require_within
from dreamjax.vision.frames import FrameStream
from dreamjax.vision.layers import Layer
from dreamjax.vision.model import VAE, images

KL_FLOOR = 0.5  # nats a latent dimension: the original's kl_tolerance
MOVED = 0.1  # of a colour, by which a pixel of two pictures differs that shows a movement
LARGE = 3.0  # times the root mean square of a picture's errors, beyond which one is large
DULL = 0.02, 0.98  # shares of a colour, between which a sigmoid learns
BANDS = 32  # columns of a picture, side by side, whose salient pixels are counted


def vae_loss(
    vae: VAE,
    key: jax.Array,
    frames: jax.Array,
    *,
    others: jax.Array | None = None,
    normal: Callable[..., jax.Array] = jax.random.normal,
    salient: Colour | None = None,
    salient_weight: float = 1.0,
    beta: float = 1.0,
    reader: Layer | None = None,
    reader_weight: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared error plus the KL divergence from N(0, 1), as doomrnn.py.

    reconstruction = mean over B of sum (x' - x)^2;
    kl = mean over B of max(sum over Z of -(1 + logvar - mu^2 - exp(logvar)) / 2, Z / 2).
    What weighs what is as in `VisionConfig`: salient pixels weigh more. Of a game without a salient
    colour they are those that move, which weigh the less the more of the picture moves, and those
    that V draws far wrong. A reader, which the paper has not, makes V say in a way that a linear C
    can read where salient pixels are: it foretells `bands` from z by an affine map, and its squared
    error counts too.

    Args:
      key: PRNG key; consumed.
      frames: [B, 64, 64, 3], uint8 or floats in [0, 1].
      others: as frames, another of the episode of each; what differs moves. None: nothing does.
      normal: draws the noise of z, as `jax.random.normal`.
      salient: the colour of salient pixels; None: those that move or are far wrong.
      beta: what the divergence counts, as in a beta-VAE (Higgins et al. 2017).
      reader: an affine map [Z] -> [BANDS]; None is the paper's V.

    Returns:
      `(loss, metrics)` with metrics `loss`, `reconstruction` (every pixel counted once), `salient`
      (the salient pixels' part of it), `kl` and, of a reader, `unread`: the share of the variance
      of `bands` that it does not foretell.
    """
    pixels = images(frames)
    mu, logvar = vae.posterior(pixels)
    z = mu + jnp.exp(logvar / 2) * normal(key, mu.shape, mu.dtype)
    errors = (vae.picture(z) - pixels) ** 2
    reconstruction = jnp.sum(errors) / len(frames)
    if salient is not None:
        there = salient.where(pixels, rows=0)
        weight = there.astype(errors.dtype)
    else:
        weight = _weight(errors, pixels, pixels if others is None else images(others))
        there = weight > 0
    those = jnp.sum(weight[None] * errors) / len(frames)
    divergence = -0.5 * jnp.sum(1 + logvar - mu**2 - jnp.exp(logvar), axis=1)
    kl = jnp.mean(jnp.maximum(divergence, KL_FLOOR * mu.shape[1]))
    loss = reconstruction + (salient_weight - 1) * those + beta * kl
    metrics = {"reconstruction": reconstruction, "salient": those, "kl": kl}
    if reader is not None:
        shown = bands(there)
        error = jnp.mean((reader.dense(z) - shown) ** 2, axis=0)
        loss = loss + reader_weight * jnp.sum(error)
        metrics["unread"] = jnp.sum(error) / jnp.maximum(jnp.sum(jnp.var(shown, axis=0)), 1e-6)
    return loss, {"loss": loss, **metrics}


def bands(there: jax.Array) -> jax.Array:
    """log(1 + pixels of a kind in each band of columns), [64, 64, B] bool -> float32 [B, BANDS].

    In logarithms a thing counts about as much far away, where it is small, as near.
    """
    columns = there.sum(axis=0, dtype=jnp.float32)
    return jnp.log1p(columns.reshape(BANDS, -1, columns.shape[-1]).sum(axis=1)).T


def _weight(errors: jax.Array, pictures: jax.Array, others: jax.Array) -> jax.Array:
    """How much what moves or is far wrong counts, [64, 64, B], of pictures [3, 64, 64, B]."""
    moving = jnp.abs(pictures - others).max(axis=0) > MOVED
    share = moving.mean(axis=(0, 1), keepdims=True)
    return jnp.where(_large(errors), 1.0, moving * (1 - share))


def _large(errors: jax.Array) -> jax.Array:
    """Pixels whose error is beyond `LARGE`, of squares [3, 64, 64, B]; bool [64, 64, B]."""
    pixels = errors.mean(axis=0)
    return pixels > LARGE**2 * pixels.mean(axis=(0, 1), keepdims=True)


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """How V is trained; the defaults are the paper's."""

    steps: int = 308_000  # batches; the paper: 10 epochs of 3.08 million frames
    batch_size: int = 100  # frames per batch
    learning_rate: float = 1e-4  # Adam's initial rate
    final_learning_rate: float = 1e-4  # final rate, reached along a cosine
    # weight of errors in salient pixels, or where none are told in what moves or is far wrong
    salient_weight: float = 1.0
    beta: float = 1.0  # weight of the KL divergence; the paper: 1
    reader_weight: float = 0.0  # weight of a linear probe that reads salient pixels from z
    # run or world whose V is trained further; None: start from scratch
    start_from: str | None = None
    bfloat16: bool | None = None  # products in bfloat16; None where the device is faster so
    steps_per_call: int = 16  # batches between two rows of metrics
    memory_gb: float = 4.0  # frames held in memory; more are streamed from disk

    def __post_init__(self):
        others = ("reader_weight", "start_from", "bfloat16")
        require_positive(self, *(name for name in vars(self) if name not in others))
        require_within(self, reader_weight="[0, inf)")

    @property
    def grows(self) -> tuple[str, ...]:
        """Settings that a later call may raise: none whose rate falls over all steps."""
        return ("steps",) if self.learning_rate == self.final_learning_rate else ()

    def rate(self, step: jax.Array) -> jax.Array:
        """The learning rate of a step."""
        share = self.final_learning_rate / self.learning_rate
        return optax.cosine_decay_schedule(self.learning_rate, self.steps, share)(step)


class Reader(struct.PyTreeNode):
    """What nobody needs after training: an affine map from z to `bands`."""

    layer: Layer
    optimizer: optax.OptState


class State(struct.PyTreeNode):
    """Everything training needs to go on."""

    model: VAE
    optimizer: optax.OptState
    reader: Reader | None = None


def train_vision(
    task: Task,
    rollouts_directory: Path | str,
    config: VisionConfig,
    seed: int,
    *,
    log: Logbook | None = None,
    vision: VAE | None = None,
    store: Store | None = None,
    meta: Mapping[str, Any] | None = None,
) -> VAE:
    """Train V on recorded frames, or go on from `store`'s newest checkpoint.

    Args:
      task, config: the game, which gives Z, and how V is trained.
      rollouts_directory: shards written by `collecting.collect`.
      seed: of the weights, the noise and the order of the frames.
      vision: V to train on, if `store` has none; None starts from chance.
      log, store, meta: as for `fit`.

    Raises:
      ValueError: no rollouts there; a batch that the processes of a job cannot share; a reader of
        a game that has no salient colour.
    """
    log, reads = log or Logbook(quiet=True), config.reader_weight > 0
    if reads and task.salient is None:
        raise SettingError(
            f"{task.name} has no salient colour to read; leave out vision.reader_weight"
        )
    mesh = devices_for(config.batch_size, "vision.batch_size", log)
    pairs, room = task.salient is None and config.salient_weight != 1, config.memory_gb * 1e9
    stream = FrameStream(rollouts_directory, config.batch_size, seed, room, pairs=pairs)
    key_model, key_noise = jax.random.split(jax.random.key(seed))
    how = {"config": config, "task": task, "dtype": product_dtype(config.bfloat16), "mesh": mesh}

    @lru_cache(maxsize=1)  # frames of the call that follows, fetched while the device is at work
    def frames_from(step):
        frames = stream.batches(step, min(config.steps_per_call, config.steps - step))
        return split((frames[:, 0], frames[:, 1]) if pairs else (frames, None), mesh, _BATCHES)

    def advance(state, step):
        frames, others = frames_from(step)
        state, metrics = updates(state, key_noise, step, frames, others, **how)
        following = step + len(frames)
        if following < config.steps:
            frames_from(following)
        return state, len(frames), {name: float(value) for name, value in metrics.items()}

    vision = vision or of_colour(
        _untrained(task.latent_size, key_model), _colour(rollouts_directory)
    )
    begun = initial_state(task.latent_size, key_model, mesh, reads=reads, vision=vision)
    kept = {"log": log, "store": store, "meta": meta}
    counted = {"unit": "frames", "units_per_step": config.batch_size}
    return on_own(fit("vision", begun, advance, config.steps, **kept, **counted).model)


def initial_state(
    latent_size: int,
    key: jax.Array,
    mesh: Mesh | None = None,
    *,
    reads: bool = False,
    vision: VAE | None = None,
) -> State:
    """The state before the first step, of `vision` or chance, on every device of `mesh` or all."""
    start = jax.jit(optax.scale_by_adam().init)
    model, reader = vision or _untrained(latent_size, key), None
    if reads:
        layer = Layer((latent_size, BANDS), BANDS, rngs=nnx.Rngs(jax.random.fold_in(key, 1)))
        reader = Reader(layer, start(layer))
    return split(State(model, start(model), reader), mesh or all_devices(), WHOLE)


@partial(jax.jit, static_argnums=0)
def _untrained(latent_size: int, key: jax.Array) -> VAE:
    return VAE(latent_size, rngs=nnx.Rngs(key))


def _colour(directory: Path | str) -> np.ndarray:
    """The mean colour of the first shard's frames, [3] in [0, 1]."""
    path = next(iter(rollouts.frame_counts(directory)))
    return rollouts.part(path, "frames").mean(axis=(0, 1, 2)) / 255


def of_colour(vision: VAE, colour: np.ndarray) -> VAE:
    """An untrained V that begins by drawing a colour [3], and not grey.

    From grey, pictures that are nearly white or black drive the last layer so far that its sigmoid
    passes no gradient back: V then draws one colour for good.
    """
    share = jnp.asarray(colour.clip(*DULL), jnp.float32)
    vision = nnx.clone(vision)
    vision.deconv4.bias[...] = jnp.log(share / (1 - share))
    return vision


_BATCHES = PartitionSpec(None, AXIS)  # of batches [n, B, ...]


@partial(jax.jit, static_argnames=("config", "task", "dtype", "mesh"), donate_argnames="state")
def updates(
    state: State,
    key: jax.Array,
    first: int,
    frames: jax.Array,
    others: jax.Array | None = None,
    *,
    config: VisionConfig,
    task: Task,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
) -> tuple[State, dict[str, jax.Array]]:
    """One step for each batch of `frames`, uint8 [n, B, 64, 64, 3]; metrics are their means.

    `others` are as many, each of the episode of a frame. The devices of `mesh`, by default all,
    share every batch.
    """
    how = {name: getattr(config, name) for name in ("salient_weight", "beta", "reader_weight")}
    how |= {"salient": task.salient, "normal": partial(own_normal, axis=0)}

    def loss(learnt, key, batch):
        frames, others = batch
        reads = {"others": others, "reader": learnt[1]}
        return vae_loss(cast(learnt[0], dtype), key, frames, **reads, **how)

    @theirs
    def learn(number, gradients, learnt, optimizer):
        changes, moments = optax.scale_by_adam().update(gradients, optimizer)
        changes = jax.tree.map(lambda x: -config.rate(number) * x, changes)
        return optax.apply_updates(learnt, changes), moments

    def step(key, state, inputs):
        (number, *batch), reader = inputs, state.reader
        learnt = state.model, reader and reader.layer
        found = jax.grad(loss, has_aux=True)(learnt, jax.random.fold_in(key, number), batch)
        (d_model, d_layer), metrics = lax.pmean(found, AXIS)
        if reader is not None:
            reader = Reader(*learn(number, d_layer, reader.layer, reader.optimizer))
        return State(*learn(number, d_model, state.model, state.optimizer), reader), metrics

    def steps(state, key, *batches):
        return lax.scan(partial(step, key), state, batches)

    specs: dict[str, Any] = {"in_specs": (*[WHOLE] * 3, _BATCHES, _BATCHES), "out_specs": WHOLE}
    shared = jax.shard_map(steps, mesh=mesh or all_devices(), check_vma=False, **specs)
    state, metrics = shared(state, key, first + jnp.arange(len(frames)), frames, others)
    return state, jax.tree.map(jnp.mean, metrics)
