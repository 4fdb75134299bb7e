"""Starts an engine that dies with the process that plays it: `python -IS leash.py PARENT ENGINE`.

Linux kills it as soon as its parent is gone, however that went. `real` has it run by a script in
front of every engine, so it imports next to nothing.
"""

import os
import sys

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


def main(parent: int, engine: str, *arguments: str) -> None:
    """Become `engine`, unless the parent has died meanwhile."""
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    except (ImportError, OSError, AttributeError):  # a Python or a system that lacks them
        pass
    if os.getppid() == parent:
        os.execv(engine, [engine, *arguments])


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
