"""The games: every constant of the paper that depends on the game, once.

`Task` values are frozen and hashable, so they may be static arguments of compiled functions.
Sources: Ha & Schmidhuber, "World Models" (2018), and the code released with it
(`doomrnn/`, `carracing/`). Where text and code disagree, the code's value stands and the
comment says so.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Score:
    """A published or measured result: mean and standard deviation of `n` episode returns."""

    mean: float
    std: float
    n: int


@dataclasses.dataclass(frozen=True)
class Task:
    """One game, as the whole pipeline sees it.

    Attributes:
      name: what the command line and files call it.
      profile: the exact variant of the real game; recorded with every result.
      latent_size: Z, numbers in V's latent vector.
      action_size: A, numbers in an action, each in [-1, 1] before the game's own mapping.
      hidden_size: H, units of M's LSTM.
      num_mixtures: K, Gaussians per latent dimension in M's output.
      dies: whether M reads a restart flag (or a clock) and predicts death.
      controller_reads: the parts of M's state, beside z, that C reads, in order.
      controller_bias: whether C has a bias.
      max_steps: steps after which an episode is truncated.
      temperature: tau of the dream that C is evolved in.
      solved_at: mean return over 100 episodes that counts as solved.
      paper: the paper's result for the full system.
      salient_green: green value in [0, 1] above which a pixel is something to dodge; 1 is none.
      flash_redness: mean of red minus green above which a picture flashes with pain; 1 is none.
    """

    name: str
    profile: str
    latent_size: int
    action_size: int
    hidden_size: int
    dies: bool
    controller_reads: tuple[str, ...]
    controller_bias: bool
    max_steps: int
    temperature: float
    solved_at: float
    paper: Score
    num_mixtures: int = 5
    salient_green: float = 1.0
    flash_redness: float = 1.0

    @property
    def feature_size(self) -> int:
        """Length of the vector that C reads."""
        return self.latent_size + len(self.controller_reads) * self.hidden_size


FRAME_SHAPE = (64, 64, 3)  # what V sees of either game, uint8
PRESSED = 1 / 3  # Take Cover's action beyond which the key of that side is held

TAKE_COVER = Task(
    name="take-cover",
    profile="takecover-2016",  # the paper's game, rebuilt with today's engine
    latent_size=64,
    action_size=1,
    hidden_size=512,
    dies=True,
    controller_reads=("c", "h"),  # doomrnn/model.py: [z, c, h]
    controller_bias=False,
    max_steps=2100,
    temperature=1.15,  # the article's best; the released code says 1.25
    solved_at=750.0,
    paper=Score(1092.0, 556.0, 100),
    salient_green=0.51,  # fireballs; walls stay below 0.5 and the red flash of pain below 0.2
    flash_redness=0.1,
)

# The same game as the vizdoom package registers it: no HUD, starts at tic 1.
TAKE_COVER_VIZDOOM = dataclasses.replace(
    TAKE_COVER, name="take-cover-vizdoom", profile="takecover-vizdoom"
)

CAR_RACING = Task(
    name="car-racing",
    profile="carracing-v3",
    latent_size=32,
    action_size=3,
    hidden_size=256,
    dies=False,
    controller_reads=("h",),  # carracing/model.py, MODE_ZH
    controller_bias=True,
    max_steps=1000,
    temperature=0.7,  # carracing/dream_env.py
    solved_at=900.0,
    paper=Score(906.0, 21.0, 100),
)

TASKS = {task.name: task for task in (TAKE_COVER, TAKE_COVER_VIZDOOM, CAR_RACING)}
