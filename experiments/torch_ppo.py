"""PPO in torch on a vector of dreams, whose observations never leave the device.

    pip install -e '.[torch]'
    python experiments/torch_ppo.py                    # learns, and prints what a dream earns
    python experiments/torch_ppo.py --compare          # steps a second by DLPack and through NumPy

gymnasium's own `JaxToTorch` hands torch the dream's arrays by DLPack: nothing is copied, so nothing
may be written over either.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
import tyro
from gymnasium.vector import AutoresetMode, VectorWrapper
from gymnasium.wrappers.vector import JaxToTorch
from torch import Tensor, nn
from torch.distributions import Categorical

import dreamjax  # noqa: F401  # registers the dreams


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the experiment."""

    env: str = "dreamjax/TakeCover-v1"
    world: str = "take-cover"
    steps: int = 1_500_000  # dream steps in all
    seed: int = 0
    num_envs: int = 256
    num_steps: int = 128  # steps between updates
    update_epochs: int = 3
    num_minibatches: int = 8
    learning_rate: float = 5e-4
    gamma: float = 0.995
    gae_lambda: float = 0.95
    clip_eps: float = 0.2
    hidden: int = 64  # units of the critic
    compare: bool = False  # learn nothing; time both ways of handing over arrays
    turns: int = 5  # of each way, by turns


class Batch(NamedTuple):
    """Steps of every dream, [T, E] and what follows."""

    obs: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    reward: Tensor
    done: Tensor


class Policy(nn.Module):
    """A linear choice, and a critic of one hidden layer."""

    def __init__(self, inputs: int, choices: int, hidden: int):
        super().__init__()
        self.actor = nn.Linear(inputs, choices)
        self.critic = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 1))
        nn.init.zeros_(self.actor.weight)

    def forward(self, obs: Tensor) -> tuple[Categorical, Tensor]:
        return Categorical(logits=self.actor(obs)), self.critic(obs)[..., 0]


def dreams(config: Config, arrays: str = "jax") -> Any:
    """The dreams, which take and give tensors."""
    how = {"vectorization_mode": "vector_entry_point", "autoreset_mode": AutoresetMode.SAME_STEP}
    how |= {"world": config.world, "actions": "discrete", "arrays": arrays}
    envs = gymnasium.make_vec(config.env, config.num_envs, **how)
    return {"jax": JaxToTorch, "numpy": ThroughNumPy}[arrays](envs)


class ThroughNumPy(VectorWrapper):
    """The usual way: tensors made of NumPy's arrays. (`NumpyToTorch` takes no `final_obs`.)"""

    def reset(self, **how: Any) -> tuple[Tensor, dict]:
        """The observations as a tensor."""
        return torch.as_tensor(self.env.reset(**how)[0]), {}

    def step(self, actions: Tensor) -> Any:
        """All but `info` as tensors."""
        *told, _ = self.env.step(actions.cpu().numpy())
        return *map(torch.as_tensor, told), {}


@torch.no_grad()
def played(envs: Any, policy: Policy, obs: Tensor, steps: int) -> tuple[Batch, Tensor]:
    """The next steps of every dream, and what is seen after them."""
    rows = []
    for _ in range(steps):
        choice, value = policy(obs)
        action = choice.sample()
        after, reward, terminated, truncated, _ = envs.step(action)
        done = (terminated.bool() | truncated.bool()).float()
        rows.append(Batch(obs, action, choice.log_prob(action), value, reward.float(), done))
        obs = after
    return Batch(*map(torch.stack, zip(*rows, strict=True))), obs


def advantages(config: Config, batch: Batch, last: Tensor) -> Tensor:
    """Generalised advantage estimates [T, E] (Schulman et al., 2016)."""
    found, carried, after = torch.zeros_like(batch.value), torch.zeros_like(last), last
    for t in reversed(range(len(batch.value))):
        alive = 1 - batch.done[t]
        error = batch.reward[t] + config.gamma * alive * after - batch.value[t]
        carried = error + config.gamma * config.gae_lambda * alive * carried
        found[t], after = carried, batch.value[t]
    return found


def update(config: Config, policy: Policy, adam: torch.optim.Adam, batch: Batch, gains: Tensor):
    """Improve the policy by one batch, clipped as PPO does it (Schulman et al., 2017)."""
    targets = gains + batch.value
    flat = [x.flatten(0, 1) for x in (*batch[:3], gains, targets)]
    for _ in range(config.update_epochs):
        for part in torch.randperm(len(flat[0])).chunk(config.num_minibatches):
            obs, action, before, gain, target = (x[part] for x in flat)
            choice, value = policy(obs)
            ratio = (choice.log_prob(action) - before).exp()
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            clipped = ratio.clamp(1 - config.clip_eps, 1 + config.clip_eps)
            loss = -torch.min(ratio * gain, clipped * gain).mean()
            loss = loss + 0.5 * (value - target).square().mean()
            adam.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
            adam.step()


def learn(config: Config, say: Callable[[str], None] = print) -> float:
    """Learn in the dream; the mean length of the dreams that ended in the last update."""
    torch.manual_seed(config.seed)
    envs = dreams(config)
    obs, _ = envs.reset(seed=config.seed)
    policy = Policy(obs.shape[1], int(envs.single_action_space.n), config.hidden).to(obs.device)
    adam = torch.optim.Adam(policy.parameters(), config.learning_rate)
    each, lived, age = (
        config.num_envs * config.num_steps,
        float("nan"),
        torch.zeros(config.num_envs),
    )
    for number in range(max(config.steps // each, 1)):
        start = time.perf_counter()
        batch, obs = played(envs, policy, obs, config.num_steps)
        with torch.no_grad():
            gains = advantages(config, batch, policy(obs)[1])
        update(config, policy, adam, batch, gains)
        ages, age = _ages(batch.done, age)
        lived = float(ages.mean()) if len(ages) else lived
        rate = each / (time.perf_counter() - start)
        say(f"{(number + 1) * each:,} steps, {rate:,.0f}/s, dreams that ended lived {lived:.0f}")
    return lived


def _ages(done: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
    """Ages at which dreams ended, and those of the dreams that go on, [E]."""
    found = []
    for over in done.bool():
        age = age + 1
        found.append(age[over])
        age = torch.where(over, 0, age)
    return torch.cat(found), age


def compare(config: Config, say: Callable[[str], None] = print) -> dict[str, float]:
    """Steps a second of the policy at play, by each way of handing over arrays, by turns."""
    torch.manual_seed(config.seed)
    ways = {name: dreams(config, name) for name in ("jax", "numpy")}
    seen = {name: envs.reset(seed=config.seed)[0] for name, envs in ways.items()}
    width, first = next(iter(seen.values())).shape[1], next(iter(ways.values()))
    policy = Policy(width, int(first.single_action_space.n), config.hidden)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(config.turns + 1):  # the first compiles
        for name, envs in ways.items():
            start = time.perf_counter()
            _, seen[name] = played(envs, policy, seen[name], config.num_steps)
            if turn:
                taken = time.perf_counter() - start
                rates[name].append(config.num_envs * config.num_steps / taken)
    found = {name: float(np.median(rate)) for name, rate in rates.items()}
    for name, rate in found.items():
        say(f"arrays={name}: {rate:,.0f} steps/s (median of {config.turns})")
    say(f"by DLPack {found['jax'] / found['numpy']:.2f} times the steps")
    return found


def main(config: Config) -> Any:
    return compare(config) if config.compare else learn(config)


if __name__ == "__main__":
    main(tyro.cli(Config))
