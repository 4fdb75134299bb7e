"""The dream as an evosax problem, for any of its strategies and loops.

Legend: D weights of a controller, P members of a population, R dreams a member.
"""

from functools import partial

import jax
import jax.numpy as jnp
from evosax.problems.problem import Problem, State

from dreamjax.controller.population import rollout
from dreamjax.dream.env import EnvParams
from dreamjax.dream.world import World


class DreamProblem(Problem):
    """Returns in the dream, negated: evosax minimises.

    Solutions are weight vectors [D] of a controller of this game, of any form. Episodes are played
    by the engine that `evolve` uses: no state is stored, and ended dreams cost nothing.

    Args:
      world: the world.
      num_rollouts: R, dreams of each member; all members meet the same starts and noise.
      temperature: tau; None is the world's own, or else the task's.
    """

    def __init__(self, world: World, num_rollouts: int = 16, temperature: float | None = None):
        self.env, self.controller, self.world = world.env(), world.controller(), world
        self.params = world.params(temperature)
        self.num_rollouts = num_rollouts

    def eval(self, key: jax.Array, solutions: jax.Array, state: State):
        """Fitness [P] of solutions [P, D], the next state, and `steps` int32 [P, R]."""
        return self._eval(key, solutions, state, self.params)

    @partial(jax.jit, static_argnames=("self",))
    def _eval(self, key: jax.Array, solutions: jax.Array, state: State, params: EnvParams):
        policy = self.world.controller_of(solutions)
        played = rollout(key, self.env, params, policy, solutions, self.num_rollouts)
        state = state.replace(counter=state.counter + 1)
        return -jnp.mean(played.score, axis=1), state, {"steps": played.steps}

    @partial(jax.jit, static_argnames=("self",))
    def sample(self, key: jax.Array) -> jax.Array:
        """Random weights [D] of a linear controller, standard deviation 0.1."""
        return 0.1 * jax.random.normal(key, (self.controller.num_params,), jnp.float32)
