"""A pytest plugin that puts the dream in the place of gymnax's own environments.

In a checkout of gymnax: `PYTHONPATH=DREAMJAX/tests pytest -p as_gymnax tests`. Its tests then
make a dream where they ask for Pendulum (continuous) or CartPole (discrete).
"""

import functools

from gymnax import registration

from dreamjax.dream.gymnax_env import named

ID = "DreamTakeCover-v1"
registration._registry |= {
    "Pendulum-v1": functools.partial(named, ID),
    "CartPole-v1": functools.partial(named, ID, actions="discrete"),
}
