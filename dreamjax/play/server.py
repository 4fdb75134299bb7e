"""Showing a page on this machine alone."""

import contextlib
import errno
import functools
import http.server
from collections.abc import Iterator
from pathlib import Path

HOST = "127.0.0.1"  # the loopback address: nobody else can look


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, none of them kept by the browser, and no lists of them."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".json": "application/json",
        ".webp": "image/webp",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format, *args) -> None:
        pass

    def list_directory(self, path) -> None:
        self.send_error(http.HTTPStatus.NOT_FOUND)


@contextlib.contextmanager
def serving(folder: Path | str, port: int) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of `folder` at a port, 0 for any that is free; `serve_forever` lets it answer.

    Raises:
      ValueError: the port is in use, or none that a program may have.
    """
    handler = functools.partial(_Handler, directory=str(folder))
    try:
        server = http.server.ThreadingHTTPServer((HOST, port), handler)
    except OverflowError:
        raise ValueError(f"port must be from 0 to 65535, got {port}") from None
    except OSError as error:
        reason = "in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ValueError(
            f"port {port} is not to be had ({reason}); choose another by --port, or 0 for any"
        ) from None
    with server:
        yield server
