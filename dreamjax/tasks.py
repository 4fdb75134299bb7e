"""The games: every constant that depends on the game, once.

Sources: Ha & Schmidhuber, "World Models" (2018), and the code released with it
(`doomrnn/`, `carracing/`). Where text and code disagree, the code's value stands and the
comment says so.
"""

import dataclasses

from dreamjax.actions import Box, Keys
from dreamjax.colours import Colour
from dreamjax.task import GAMMA, Score, Task

TAKE_COVER = Task(
    name="take-cover",
    make="dreamjax.game.take_cover:make",
    profile="takecover-2016",  # the paper's game, rebuilt with today's engine
    actions=Keys(),
    crop=(0, 100, 0, 160),  # of 120 rows; the original kept 400 of 480
    ends=("death",),
    step_reward=1.0,
    reward_scale=1.0,
    frame_skip=1,
    latent_size=64,
    hidden_size=512,
    controller_reads=("c", "h"),  # doomrnn/model.py: [z, c, h]
    controller_bias=False,
    max_steps=2100,
    temperature=1.15,  # the article's best; the released code says 1.25
    branched=True,
    gamma=0.997,
    action_repeat=4,
    controller_hidden=64,
    frames_per_second=35,  # tics of Doom's clock
    blind="dreamjax.game.take_cover:left_and_right",
    habits="dreamjax.game.take_cover:habits",
    panel=tuple(f"dreamjax.game.take_cover:{name}" for name in ("still", "dodging", "sweeps")),
    ages=(0, 150, 300, 500, 800, 1300, 2100),
    seeds=2**32,
    timeout=60.0,
    package="vizdoom",
    salient=Colour(0, 1, 0, 0.51, flash=(1, -1, 0)),  # fireballs; walls stay below 0.5
    flash=Colour(1, -1, 0, 0.1),
    paper=Score(1092.0, 556.0, 100),
)

# The same game as the vizdoom package registers it: no HUD, starts at tic 1.
TAKE_COVER_VIZDOOM = dataclasses.replace(
    TAKE_COVER,
    name="take-cover-vizdoom",
    make="dreamjax.game.take_cover:make_vizdoom",
    profile="takecover-vizdoom",
)

CAR_RACING = Task(
    name="car-racing",
    make="dreamjax.game.car_racing:make",
    profile="carracing-v3-skip4",
    actions=Box((-1, 0, 0), (1, 1, 1), clipped=(2,)),  # carracing/model.py: steer, gas, brake
    crop=(0, 84, 0, 96),  # of 96 rows; the rest is the bar of gauges
    ends=("off track", "lap"),
    reward_scale=3.0,  # about what a tile of the road earns
    reads_restart=False,
    latent_size=32,
    hidden_size=256,
    controller_reads=("h",),  # carracing/model.py, MODE_ZH
    controller_bias=True,
    frame_skip=4,  # the paper's 1; one frame shows too little of what an action does
    max_steps=250,
    branched=True,
    gamma=0.99,
    controller_hidden=0,
    frames_per_second=50,
    blind="dreamjax.game.car_racing:leftwards",
    habits="dreamjax.game.car_racing:everyone",
    panel=tuple(
        f"dreamjax.game.car_racing:{name}"
        for name in ("steady", "brisk", "fast", "hasty", "shaken", "full_gas", "full_lock")
    ),
    seeds=2**32,
    timeout=60.0,
    package="gymnasium",
    salient=Colour(0, -1, 0, -0.6),  # the road, the car and kerbs; grass is above 0.8
    paper=Score(906.0, 21.0, 100),
)

# The paper's own steps, of one frame each: for its released weights.
CAR_RACING_PAPER = dataclasses.replace(
    CAR_RACING,
    name="car-racing-paper",
    profile="carracing-v3",
    frame_skip=1,
    max_steps=1000,
    ages=(),
    temperature=0.7,  # carracing/dream_env.py
    branched=False,
    gamma=GAMMA,
)

GAMES = (TAKE_COVER, TAKE_COVER_VIZDOOM, CAR_RACING, CAR_RACING_PAPER)
TASKS = {task.name: task for task in GAMES}
