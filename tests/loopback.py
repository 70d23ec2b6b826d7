"""A simulator's face on a loopback port, for adapters that are to go through a real socket."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from infra.demo.http_face import HttpFace


class Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Silence."""


@contextlib.contextmanager
def served(sim: Any, clock: Callable[[], datetime]) -> Iterator[str]:
    """Its URL, until the end of the block."""
    face = HttpFace(sim, clock=clock, lock=threading.Lock())
    server = make_server("127.0.0.1", 0, face, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        server.server_close()
