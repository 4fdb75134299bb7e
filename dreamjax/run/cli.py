"""How the `dreamjax` command starts and ends: devices, signals, and errors in one line."""

import argparse
import os
import re
import shlex
import sys
import traceback
from typing import Any

from dreamjax.training import stopping

DEBUG = "--debug"  # anywhere on the command line: show where an error came from
FAULTS = (ValueError, ImportError, ArithmeticError, OSError, RuntimeError, MemoryError)
MEASURING = ("fidelity", "calibrate")  # commands that compare dreams with games


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    words = [_at_home(word) for word in argv if word != DEBUG]
    said = f"\nstopped; resume with: dreamjax {shlex.join(words)}\n"
    with stopping.at_once(said):
        command = None
        try:
            _choose_devices(words)
            command = _parse(words)
            stopping.by_interrupt()
            command()
            sys.stdout.flush()
        except KeyboardInterrupt:
            return _end(said, 130)
        except BrokenPipeError:  # whoever reads has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return _end(said, 141) if getattr(command, "resumes", False) else 0
        except FAULTS as error:
            if DEBUG in argv:
                traceback.print_exc()
            return _end(f"{_line(error, words)}\n", 1)
    return 0


def _at_home(word: str) -> str:
    """A word whose ~ is the home, also where the shell leaves it: in --world=~/x."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return option + equals + os.path.expanduser(value)


def _devices_of_a_job() -> Any:
    """The module `devices` where this process is one of a job; else None, as before jax came up."""
    devices = sys.modules.get("dreamjax.training.devices")
    return devices if devices and devices.in_a_job() else None


def _end(said: str, status: int) -> int:
    """`status`, once `said` is."""
    sys.stderr.write(said)
    if devices := _devices_of_a_job():
        devices.leave(status)
    return status


def _line(error: BaseException, words: list[str]) -> str:
    """What went wrong, and what to do, in one line."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, MemoryError) or re.search("out of memory|RESOURCE_EXHAUSTED", text, re.I):
        text = f"out of memory ({text}); use fewer lanes, a smaller batch, population or world"
    elif "Too many open files" in text:
        text += "; use fewer --workers, or lift the limit: ulimit -n 4096"
    elif "Gloo" in text and (devices := _devices_of_a_job()):
        return devices.lost(words, text)
    return f"dreamjax: {text}"


def _early(words: list[str]) -> argparse.Namespace:
    """Preset and device, which are needed before the command line can be parsed."""
    parser = argparse.ArgumentParser("dreamjax", add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", nargs="?")
    parser.add_argument("--device", nargs="?", default="auto")
    return parser.parse_known_args(words)[0]


def _choose_devices(words: list[str]) -> None:
    """Do what `--device` and `--distributed` say, before an import asks jax for its devices."""
    from dreamjax.training import devices

    name, distributed = next(iter(words), ""), "--distributed" in words
    if distributed and name in MEASURING:
        raise ValueError(f"{name} runs on one host; leave out --distributed")
    device = _early(words).device
    if device not in devices.CHOICES or not {"-h", "--help"}.isdisjoint(words):
        return  # the parser has something to say
    if distributed:
        devices.join(words)
    devices.use(device)


def _parse(words: list[str]) -> Any:
    """The subcommand that `words` ask for, filled in."""
    from dreamjax.run import commands

    try:
        return commands.parsed(words, _early(words).preset)
    finally:
        sys.stdout.flush()
