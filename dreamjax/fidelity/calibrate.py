"""The temperature at which dreams last as long as games."""

import math
from collections.abc import Mapping

from dreamjax.dream.world import World
from dreamjax.fidelity.compare import dreamt_play

RANGE = 0.75, 2.0  # tau is looked for between them
PRECISION = 0.02  # of it, relative


def true_temperature(
    world: World, lived: Mapping[str, float], episodes: int = 256, seed: int = 0
) -> tuple[float, dict[str, float]]:
    """The tau at which blind players live as long in the dream as in the game.

    M may judge danger rightly while it watches, and yet dream too kindly at tau = 1, where dangers
    seldom come to be. A higher tau makes up for that, as in the paper, where it was chosen by C's
    scores in the game; here no C is needed.

    Args:
      world: the dream, at whatever temperature.
      lived: of blind policies in `policies.NAMES`, mean steps survived in the game.
      episodes: dreams of each policy at each tau that is tried.
      seed: of plans and dreams, the same at each tau.

    Returns:
      tau, at which the logarithms of dreamt over real lives average to 0; the steps survived in
      the dream by each policy at the tau nearest to it that was tried.

    Raises:
      ValueError: dreams are longer, or shorter, than games at every tau in `RANGE`.
    """
    tried = {}

    def excess(log_tau: float) -> float:
        tau = math.exp(log_tau)
        played = {name: dreamt_play(world, name, episodes, seed, tau) for name in lived}
        tried[tau] = {name: float(found.steps.mean()) for name, found in played.items()}
        return sum(math.log(tried[tau][name] / lived[name]) for name in lived)

    low, high = map(math.log, RANGE)
    if (longer := excess(high) > 0) or excess(low) < 0:
        told = "longer" if longer else "shorter"
        raise ValueError(
            f"dreams of this world are {told} than games at every temperature from {RANGE[0]} to "
            f"{RANGE[1]}; train its M on more games"
        )
    from scipy import optimize  # a second's import, for this alone

    found = math.exp(optimize.brentq(excess, low, high, xtol=PRECISION))
    return found, tried[min(tried, key=lambda tau: abs(tau - found))]
