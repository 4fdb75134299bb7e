"""Starts an engine that dies with its player: `python -IS leash.py SHARED PARENT ENGINE ...`.

Linux kills it as soon as its parent is gone, however that went; files that begin with SHARED name
its shared memory. `take_cover` has it run in front of every engine, so it imports next to nothing.
"""

import itertools
import os
import sys

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


def main(shared: str, parent: str, engine: str, *arguments: str) -> None:
    """Become `engine`, unless the parent has died meanwhile."""
    for option, instance in itertools.pairwise(arguments):
        if option == "+viz_instance_id":
            for name in ("MQCtr", "MQDoom", "SM"):
                open(f"{shared}{name}{instance}", "w").close()
    try:
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    except (ImportError, OSError, AttributeError):  # a Python or a system that lacks them
        pass
    if os.getppid() == int(parent):
        os.execv(engine, [engine, *arguments])


if __name__ == "__main__":
    main(*sys.argv[1:])
