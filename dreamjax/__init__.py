"""dreamjax: World Models (Ha & Schmidhuber, 2018) in JAX.

The path of data, one room a step:

`game` (real episodes) -> `vision` (V) -> `memory` (M) -> `dream` (M as an environment)
-> `controller` (C, evolved or learnt) -> `agent` (the real game again).

`tasks` says what a game is. `fidelity` compares dream and game, `play` shows a dream in a browser,
`run` does all of it in one directory, `training` is what the rooms share. Each imports only from
those before it.
Names load on first use, so that the processes that only play a game start without jax.
"""

import os
import sys

_run = sys.orig_argv[-len(sys.argv)].removeprefix("-m") if sys.argv[:1] == ["-m"] else None
if _run == __name__ and not sys.flags.safe_path and sys.path[0] != os.path.dirname(__path__[0]):
    del sys.path[0]  # the current directory, which may be a download

import lazy_loader  # noqa: E402

from dreamjax.dream.registration import register_dreams  # noqa: E402

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register_dreams()
