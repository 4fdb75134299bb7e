"""The `dreamjax` command: through its own `main`, or in a process of its own as a user runs it."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time

from dreamjax.run import cli


def environ(**more):
    """The environment of a command, which compiles a little better than the tests: it runs V."""
    flags = os.environ.get("XLA_FLAGS", "").replace("optimization_level=0", "optimization_level=1")
    return os.environ | {"XLA_FLAGS": flags} | {name: str(value) for name, value in more.items()}


def start(*words, **environment):
    """The running command; its output is text."""
    return subprocess.Popen(
        [sys.executable, "-m", "dreamjax", *map(str, words)],
        env=environ(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, seconds=600):
    """`(status, stdout, stderr)` of a command that comes to its end."""
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def dreamjax(*words):
    """Run the command to its end, in this process: `(status, stdout, stderr)`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([*map(str, words)])
        except SystemExit as stop:  # the parser's word
            status = stop.code
    return status, out.getvalue(), err.getvalue()


def alone(*words, **environment):
    """Run the command to its end in a process of its own: `(status, stdout, stderr)`."""
    return finish(start(*words, **environment))


def refused(*words, **environment):
    """The one line with which the command refuses."""
    status, _, err = alone(*words, **environment) if environment else dreamjax(*words)
    assert status == 1 and err.count("\n") == 1 and err.startswith("dreamjax: "), err
    return err


def wait_for(condition, process, seconds=300):
    """Wait until `condition()` holds while the command runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def kill(process):
    """End the command as a crash of the machine would."""
    process.send_signal(signal.SIGKILL)
    process.communicate()
