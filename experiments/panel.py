"""Car Racing, dream against game, for drivers that taught the world nothing.

    python experiments/panel.py --world car-racing --tracks 24

Rules look at the picture: the game's, or V's decoding of the dream. The others are blind.
"""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from dreamjax.agent import evaluation_seeds
from dreamjax.dream.world import World
from dreamjax.dream.worlds import load_world
from dreamjax.game import car_racing
from dreamjax.game.env import make_env
from dreamjax.game.policies import begin, play_steps
from dreamjax.training.settings import require_positive, require_within

GAS = (0.15, 0.25, 0.4, 0.6)  # of the rule on the straight
HELD = {  # one action for good
    "full gas": (0.0, 1.0, 0.0),
    "full lock": (1.0, 0.1, 0.0),
    "right": (0.3, 0.1, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    world: str = "car-racing"  # a run, or a world's name or folder
    temperature: float = 1.0
    dropout: float = 0.0  # of the dream
    dreams: int = 24
    tracks: int = 0  # of the game; 0 leaves it out
    seed: int = 5

    def __post_init__(self):
        require_positive(self, "dreams")
        require_within(self, tracks="[0, inf)")


def main(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Print, and return, the returns of each driver in the dream [dreams] and the game [tracks]."""
    world = load_world(config.world)
    if world.task.package != "gymnasium":
        raise SystemExit(f"{config.world} is a world of {world.task.name}; name one of car-racing")
    world = dataclasses.replace(
        world, temperature=config.temperature, dropout=config.dropout or None
    )
    found: dict[str, dict[str, np.ndarray]] = {}
    dream = dreamer(world, config.dreams, config.seed)
    print(f"{'driver':<20}{'dream':>16}{'game':>16}")
    for name, policy in drivers().items():
        found[name] = {"dream": dream(policy)}
        if config.tracks:
            found[name]["game"] = played(world, policy, config.tracks, config.seed)
        told = (f"{x.mean():.0f} ± {x.std():.0f}" for x in found[name].values())
        print(f"{name:<20}" + "".join(f"{x:>16}" for x in told), flush=True)
    return found


def drivers() -> dict[str, str | Callable]:
    """Policies by name, as `game.policies.begin` takes them."""
    rules = {
        f"rule, gas {gas}": lambda actions, rng, gas=gas: car_racing.Driver(gas=gas) for gas in GAS
    }
    held = {
        name: lambda actions, rng, a=a: lambda step, frame=None: np.float32(a)
        for name, a in HELD.items()
    }
    return rules | held | {"blind": "blind", "random": "uniform", "held": "held"}


def dreamer(world: World, dreams: int, seed: int) -> Callable[[str | Callable], np.ndarray]:
    """What gives the returns [dreams] of a policy that sees what V decodes."""
    env, params = world.env(), world.params()
    decode = jax.jit(lambda z: (255 * jnp.clip(world.vision.decode(z), 0, 1)).astype(jnp.uint8))
    step = jax.jit(jax.vmap(env.step_env, (0, 0, 0, None)))
    key, first = jax.random.split(jax.random.key(seed))
    _, start = jax.vmap(env.reset, (0, None))(jax.random.split(first, dreams), params)

    def returns(policy):
        rngs = np.random.default_rng(seed).spawn(dreams)
        acting = [begin(world.task, policy, rng) for rng in rngs]
        state, total, alive = start, np.zeros(dreams), np.ones(dreams, bool)
        for t in range(world.task.max_steps):
            shown = np.asarray(decode(state.z))
            actions = [act(t, frame) for act, frame in zip(acting, shown, strict=True)]
            keys = jax.random.split(jax.random.fold_in(key, t), dreams)
            _, state, reward, ended, _ = step(keys, state, jnp.float32(np.stack(actions)), params)
            total += np.where(alive, reward, 0.0)
            alive &= ~np.asarray(ended)
        return total

    return returns


def played(world: World, policy: str | Callable, tracks: int, seed: int) -> np.ndarray:
    """Returns [tracks] in the game."""
    with contextlib.closing(make_env(world.task)) as env:
        seeds = evaluation_seeds(seed, tracks)
        return np.array([sum(x[2] for x in play_steps(env, policy, one)) for one in seeds])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
