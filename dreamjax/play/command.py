"""`dreamjax play`: write the page of a world, and show it."""

import contextlib
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamjax.dream.worlds import has_player, load_world
from dreamjax.game.workers import WorkerError, python
from dreamjax.play import folder, server

UNTOLD = "No game was recorded: dreamjax play WORLD --out DIR tells why."


def write(source: str, out: Path | str, seed: int, *, recorded: bool) -> Path:
    """Write the page of a world to the folder `out`, and return that.

    Args:
      source: a shipped world's name, a run directory or an exported folder.
      seed, recorded: of the real game that C plays for the page, and whether it is played now.
    """
    world = load_world(source)
    player = world.player if has_player(source) else None
    page = folder.write(out, world, player)
    if recorded and player is not None:
        try:
            folder.add_recording(page, world, player, seed)
        except (ImportError, WorkerError) as error:
            folder.tell(page, f"No game was recorded: {error}")
    return page


def show(source: str, port: int, seed: int, words: list[str]) -> None:
    """Show the page of a world until the process is interrupted.

    `source` and `seed` are as for `write`, the port as for `server.serving`; `words` are further
    ones of the command, for the process that records.
    """
    with tempfile.TemporaryDirectory(prefix="dreamjax-page-") as page:
        again = ["play", source, "--out", page, "--seed", str(seed), *words]
        with server.serving(page, port) as serving:
            write(source, page, seed, recorded=False)
            with _recording(page, again):
                print(f"http://{server.HOST}:{serving.server_port}/  (Ctrl-C ends it)", flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    serving.serve_forever()
                print()


@contextlib.contextmanager
def _recording(page: str, words: list[str]) -> Iterator[None]:
    """A process that records a game for the page, while the dream is played already."""
    command = [*python("from dreamjax.run.cli import main; sys.exit(main())"), *words]
    silent: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(command, **silent, start_new_session=True)  # no terminal's Ctrl-C

    def told():
        if process.wait():
            folder.tell(page, UNTOLD)

    waiting = threading.Thread(target=told)
    waiting.start()
    try:
        yield
    finally:
        process.terminate()
        waiting.join()
