"""Take Cover itself, but with short episodes, few latents and a small M: soon played and learnt."""

import dataclasses

from dreamjax import register
from dreamjax.tasks import TAKE_COVER

SHORT = register(
    dataclasses.replace(
        TAKE_COVER,
        name="short-cover",
        latent_size=8,
        hidden_size=24,
        max_steps=160,
        ages=(0, 20, 40, 60, 80, 120, 160),
    )
)
