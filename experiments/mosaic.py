"""A thousand dreams at once, as one moving picture.

    python experiments/mosaic.py --out mosaic.gif

Every tile is one player with a controller of its own; a tile goes dark when its player dies.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from PIL import Image

from dreamjax.dream.worlds import load_world
from dreamjax.run.pictures import save_gif

PICTURES_PER_SECOND = 12.5


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the picture."""

    out: Path
    world: str = "take-cover"
    side: int = 32  # tiles along an edge
    frames: int = 60
    skip: int = 3  # dream steps between two frames
    shrink: int = 4  # a tile is 64 / shrink pixels wide
    seed: int = 0


def main(config: Config) -> None:
    """Dream, draw and save."""
    world, count = load_world(config.world), config.side**2
    env, params, controller = world.env(), world.params(), world.controller()
    key_weights, key_reset, key_steps = jax.random.split(jax.random.key(config.seed), 3)
    weights = 0.1 * jax.random.normal(key_weights, (count, controller.num_params))

    @jax.jit
    def advance(key, state, obs, alive):
        def step(loop, key):
            state, obs, alive = loop
            actions = jax.vmap(controller)(weights, obs)
            keys = jax.random.split(key, count)
            obs, state, _, dead, _ = jax.vmap(env.step_env, (0, 0, 0, None))(
                keys, state, actions, params
            )
            return (state, obs, alive & ~dead), None

        return jax.lax.scan(step, (state, obs, alive), jax.random.split(key, config.skip))[0]

    @jax.jit
    def draw(z, alive):
        small = jax.lax.map(world.vision.decode, z.reshape(config.side, config.side, -1))
        small = small[:, :, config.shrink // 2 :: config.shrink, :: config.shrink]
        tiles = small * jnp.where(alive, 1.0, 0.2).reshape(config.side, config.side, 1, 1, 1)
        rows = tiles.transpose(0, 2, 1, 3, 4)
        return (rows.reshape(config.side * tiles.shape[2], -1, 3) * 255).astype(jnp.uint8)

    obs, state = jax.vmap(env.reset_env, (0, None))(jax.random.split(key_reset, count), params)
    alive, pictures = jnp.ones(count, bool), []
    for key in jax.random.split(key_steps, config.frames):
        pictures.append(Image.fromarray(np.asarray(draw(state.z, alive))))
        state, obs, alive = advance(key, state, obs, alive)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    save_gif(pictures, config.out, PICTURES_PER_SECOND)
    print(
        f"{config.out}: {count} dreams, {int(alive.sum())} alive after "
        f"{config.frames * config.skip} steps"
    )


if __name__ == "__main__":
    main(tyro.cli(Config))
