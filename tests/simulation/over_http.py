"""The same stories over the real faces: httpx to the market's HTTP face, boto3 to a real S3 server, both on loopback.

The world stays on its one thread: a face hands each request to it, and it serves them while a call is under way.
"""

from __future__ import annotations

import contextlib
import functools
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from werkzeug.serving import WSGIRequestHandler, make_server

from common.adapters.s3 import S3
from common.adapters.tensordock import TensorDock
from common.adapters.vast import Vast
from common.ports import Market, Stored
from infra.demo.http_face import HttpFace
from infra.demo.s3_server import S3Server, s3_server
from infra.demo.wire import Answer, Request
from tests.simulation import runs
from tests.simulation.faults import Faults
from tests.simulation.market import API_KEY, Account
from tests.simulation.objects import Bucket
from tests.simulation.plan import Plan
from tests.simulation.world import Outcome, World

FAULTS_FOR_S = 900.0
"""Shorter lives: a call costs milliseconds here, not microseconds."""
POLL_S = 0.05


def runs_of(first: int, count: int) -> list[runs.Run]:
    return [runs.Run(seed, over_http=True) for seed in range(first, first + count)]


def do(run: runs.Run) -> Outcome:
    faces = _faces()
    plan = Plan.of(run.seed)
    owned = (replace(plan.owned[0], deploys_in_slack=False),)
    short = replace(
        plan, owned=owned, markets=plan.markets[:1], faults_for_s=FAULTS_FOR_S, in_slack=False, with_standby=False
    )
    return WorldOverHttp(run.seed, run.faults(), short, runs.folder(), faces).run()


class WorldOverHttp(World):
    def __init__(self, seed: int, faults: Faults, plan: Plan, folder: Path, faces: Faces) -> None:
        self._faces = faces
        super().__init__(seed, faults, plan, folder)

    def make_market(self, account: Account) -> Any:
        self._faces.serve(account.handle, self.loop.clock)
        return Pumped(self._faces.markets[account.name], self._faces)

    def make_bucket(self) -> Bucket:
        return RealBucket(lambda: self.loop.now, s3=self._faces.s3)


class Faces:
    """One per process: the servers, and the clients that production uses."""

    def __init__(self, server: S3Server) -> None:
        self._handle: Callable[[Request, datetime], Answer] | None = None
        self._clock: Callable[[], datetime] | None = None
        self.inbox: queue.Queue[tuple[Request, Future[Answer]]] = queue.Queue()
        face = HttpFace(self, clock=lambda: self._clock(), lock=contextlib.nullcontext())  # type: ignore[arg-type, misc]
        http = make_server("127.0.0.1", 0, face, threaded=True, request_handler=_Quiet)
        threading.Thread(target=http.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{http.server_port}"
        self.markets = {
            "vast": Vast(API_KEY, base_url=url),
            "tensordock": TensorDock(API_KEY, base_url=url),
        }
        self.s3 = S3(
            endpoint=server.endpoint,
            bucket=server.bucket,
            region="us-east-1",
            key_id=server.access_key,
            secret=server.secret_key,
        )
        self.calls = ThreadPoolExecutor(1)

    def serve(self, handle: Callable[[Request, datetime], Answer], clock: Callable[[], datetime]) -> None:
        self._handle, self._clock = handle, clock

    def handle(self, request: Request, _now: datetime) -> Answer:
        """On a server's thread: the world's own thread answers."""
        answer: Future[Answer] = Future()
        self.inbox.put((request, answer))
        return answer.result()

    def answer_until(self, done: Future[Any]) -> None:
        """On the world's thread: serve what arrives until the call is over."""
        done.add_done_callback(lambda _: self.inbox.put(None))  # type: ignore[arg-type]
        while not done.done():
            with contextlib.suppress(queue.Empty):
                item = self.inbox.get(timeout=POLL_S)
                if item is not None:
                    assert self._handle and self._clock
                    item[1].set_result(self._handle(item[0], self._clock()))


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


class Pumped:
    """The real adapter: its calls run beside the world, which answers them meanwhile."""

    def __init__(self, market: Market, faces: Faces) -> None:
        self._market, self._faces = market, faces
        self.name, self.limits = market.name, market.limits

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._market, name)

        def call(*args: Any, **more: Any) -> Any:
            done = self._faces.calls.submit(method, *args, **more)
            self._faces.answer_until(done)
            return done.result()

        return call


class RealBucket(Bucket):
    """Everything is in the S3 server; the mirror only knows what was damaged, and when."""

    def __init__(self, clock: Callable[[], float], *, s3: S3) -> None:
        super().__init__(clock)
        self._s3 = s3

    def get(self, key: str) -> bytes:
        return self._s3.get(key)

    def read(self, key: str) -> Iterator[bytes]:
        return self._s3.read(key)

    def list(self, prefix: str, hides_newest_s: float = 0.0) -> Iterator[Stored]:
        hidden = {stored.key for stored in super().list(prefix)} - {s.key for s in super().list(prefix, hides_newest_s)}
        return (stored for stored in self._s3.list(prefix) if stored.key not in hidden)

    def put(self, key: str, data: bytes) -> None:
        self._s3.put(key, data)
        super().put(key, data)

    def delete(self, keys: Sequence[str]) -> None:
        self._s3.delete(keys)
        super().delete(keys)

    def garble(self, key: str, *, is_rot: bool = False) -> None:
        super().garble(key, is_rot=is_rot)
        self._s3.put(key, self.objects[key].data)

    def lose(self, key: str) -> None:
        super().lose(key)
        self._s3.delete([key])


@functools.cache
def _faces() -> Faces:
    folder = Path(tempfile.mkdtemp(prefix="dumont-s3-"))
    kept.enter_context(contextlib.closing(_Folder(folder)))
    return Faces(kept.enter_context(s3_server(folder / "s3")))


class _Folder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def close(self) -> None:
        import shutil

        shutil.rmtree(self._folder, ignore_errors=True)


kept = contextlib.ExitStack()
"""Closed with the process; the server dies with it in any case."""
