"""Showing a page on this machine alone."""

import contextlib
import errno
import functools
import http.server
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

HOST = "127.0.0.1"  # the loopback address: nobody else can look


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Files of one folder, none of them kept by the browser."""

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map,
        ".js": "text/javascript",
        ".json": "application/json",
        ".webp": "image/webp",
    }

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, format, *args) -> None:
        pass

    def send_head(self):
        """As its base; nothing but the folder's own files, so no lists of them."""
        path = urlsplit(self.path).path
        if path == "/" or not path.endswith("/"):
            return super().send_head()
        self.send_error(http.HTTPStatus.NOT_FOUND)
        return None


@contextlib.contextmanager
def serving(folder: Path | str, port: int) -> Iterator[http.server.ThreadingHTTPServer]:
    """A server of `folder`, which listens from now on; `serve_forever` lets it answer.

    Args:
      folder: what it shows.
      port: of the loopback address; 0 is any that is free.

    Raises:
      ValueError: the port is in use, or none that a program may have.
    """
    handler = functools.partial(_Handler, directory=str(folder))
    try:
        server = _Server((HOST, port), handler)
    except OverflowError:
        raise ValueError(f"port must be from 0 to 65535, got {port}") from None
    except OSError as error:
        reason = "in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ValueError(
            f"port {port} is not to be had ({reason}); choose another by --port, or 0 for any"
        ) from None
    with server:
        yield server


class _Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True  # one that has just ended keeps no port
    daemon_threads = True
