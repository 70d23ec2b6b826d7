"""The simulated world as one program: the markets' APIs, an S3 server, the rentals' processes, and a control face.

Its state is a journal under the state directory, written whenever a market changes. After a kill -9 it comes back
from it: rentals that still run are taken up again, one whose processes are gone is a crashed machine.
"""

from __future__ import annotations

import json
import os
import pwd
import random
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from flask import Flask, Response, request
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from common.adapters.s3 import S3
from infra.demo.gcp.compute import ComputeSim
from infra.demo.http_face import HttpFace
from infra.demo.rental import Process, Rental
from infra.demo.s3_server import s3_server
from infra.demo.tensordock import TensorDockSim
from infra.demo.uplink import Uplink
from infra.demo.vast import VastSim
from infra.demo.vast_market import HIDDEN
from infra.demo.vast_webhooks import Delivery
from infra.demo.wire import Contract, Effect, Marketplace
from infra.demo.workspace import Workspace
from infra.gpu_host import bundle
from infra.local.config import BUCKET, GOOGLE_PROJECT, Local
from infra.local.ports import free_ports

TICK_S = 0.2
GOOGLE_OPERATION_S = 1.0
NOTICE_S = 3.0
"""Between a rental's SIGTERM and its SIGKILL."""
WEBHOOK_WITHIN_S = 10.0
"""The vendor's patience with an answer."""
FAULTS = {
    "kill": "every process of the machine is killed at once (the container died)",
    "cut": "the machine's network is silently cut",
    "freeze": "every process is stopped, as when the host hangs",
    "thaw": "a host that hung goes on",
    "notice": "SIGTERM, then killed a few seconds later",
    "outbid": "the marketplace stops the machine; its disk stays and bills",
    "lose": "the machine vanishes from the marketplace without notice",
}


class World:
    """The simulators with their real consequences. One lock: a market's state and the processes change together."""

    def __init__(self, local: Local) -> None:
        self._folder = Path(local.state) / "world"
        (self._folder / "rentals").mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._local = local
        self._blocks = 0
        """Of ports that machines were given."""
        self._rentals: dict[str, Rental] = {}
        self.vast, self.google, *others = self._come_back()
        self._markets: tuple[Marketplace, ...] = (self.vast, *others, *([self.google] if local.gcp_port else []))
        self.workspace = Workspace(local, self._folder, _now)
        self.uplink = Uplink(self._groups)
        self.faces = {
            market.name: HttpFace(market, clock=_now, lock=self._lock, after=self._settle) for market in self._markets
        }

    # --- state

    def _come_back(self) -> tuple[VastSim, ComputeSim, TensorDockSim]:
        local, rng = self._local, random.Random(self._local.seed)
        journal = self._folder / "journal.json"
        google = ComputeSim(rng=random.Random(f"google:{local.seed}"), project=GOOGLE_PROJECT)
        google.slow(GOOGLE_OPERATION_S)
        if not journal.exists():
            vast = VastSim(rng=rng, api_key=local.vast_api_key)
            return vast, google, TensorDockSim(rng=rng, api_key=local.tensordock_api_key)
        kept = json.loads(journal.read_text())
        self._blocks = kept.get("blocks", 0)
        for label, process in kept["processes"].items():
            rental = self._rental(label)
            rental.process = Process(**process)  # one that died meanwhile is found dead at the next tick
        if "gcp" in kept["markets"]:
            google = ComputeSim.from_json(kept["markets"]["gcp"], rng=random.Random(f"google:{local.seed}"))
        return (
            VastSim.from_json(kept["markets"]["vast"], rng=rng),
            google,
            TensorDockSim.from_json(kept["markets"]["tensordock"], rng=rng),
        )

    def _keep(self) -> None:
        processes = {
            label: {"pid": rental.process.pid, "started_ticks": rental.process.started_ticks}
            for label, rental in self._rentals.items()
            if rental.process
        }
        journal = self._folder / "journal.json"
        new = journal.with_suffix(".new")
        markets = {market.name: market.to_json() for market in self._markets}
        new.write_text(json.dumps({"markets": markets, "processes": processes, "blocks": self._blocks}))
        new.replace(journal)

    def _rental(self, label: str) -> Rental:
        return self._rentals.setdefault(label, Rental(self._folder / "rentals" / label))

    def _groups(self) -> dict[str, int]:
        return {label: r.process.pid for label, r in list(self._rentals.items()) if r.process}

    def _contract(self, label: str) -> tuple[Marketplace, Any] | None:
        """The market that lists the label, and the contract's id there."""
        found = ((market, market.contract_of(label)) for market in self._markets)
        return next(((market, id) for market, id in found if id is not None), None)

    # --- time

    def tick(self) -> None:
        """Let time pass in the markets, bill what went over the uplink, and look for machines that died."""
        with self._lock:
            now = _now()
            self._bill_traffic(now)
            self._note_deaths(now)
            for market in self._markets:
                market.tick(now)
            self._settle()
            due = self.vast.webhooks.take_due(now)
        for delivery in due:
            threading.Thread(target=self._deliver, args=(delivery,), daemon=True).start()
        self.workspace.tick()

    def _deliver(self, delivery: Delivery) -> None:
        """One attempt of one webhook, with the vendor's time limit."""
        with self._lock:
            url, headers = self.vast.webhooks.signed(delivery, _now())
        try:
            request = urllib.request.Request(url, delivery.body, headers)
            with urllib.request.urlopen(request, timeout=WEBHOOK_WITHIN_S) as answer:
                status: int | None = answer.status
        except urllib.error.HTTPError as refusal:
            status = refusal.code
            refusal.close()
        except OSError:
            status = None
        with self._lock:
            self.vast.webhooks.answered(delivery, status, _now())

    def _bill_traffic(self, now: datetime) -> None:
        for label, traffic in self.uplink.take_traffic().items():
            if found := self._contract(label):
                market, id = found
                market.traffic(id, traffic.up_bytes, traffic.down_bytes, now)

    def _note_deaths(self, now: datetime) -> None:
        for label, rental in self._rentals.items():
            if rental.process and not rental.alive:
                rental.kill()
                if found := self._contract(label):
                    market, id = found
                    market.exited(id, now)

    def _settle(self) -> None:
        """Carry out what the markets decided, then write it down."""
        effects = [(market, effect) for market in self._markets for effect in market.drain()]
        for market, effect in effects:
            rental = self._rental(effect.label)
            match effect.kind:
                case "start":
                    env = {**effect.env, **self._container(market, effect)}
                    rental.start(env, effect.onstart, effect.hardware)
                case "stop":
                    rental.kill()
                case "vanish":
                    rental.wipe()
                    self._rentals.pop(effect.label, None)
        if effects:
            self._keep()

    def _container(self, market: Marketplace, effect: Effect) -> dict[str, str]:
        """What a marketplace itself adds to a machine's environment, and what machines that share one computer need."""
        env = self._network(effect.label) if self._local.gcp_port else {}
        if market is self.google:
            address = self.google.address_of(effect.label)
            return {**env, "DUMONT_ADDRESS": address, "DUMONT_LISTEN": address}
        if not isinstance(market, VastSim):
            return env
        return {
            **env,
            "CONTAINER_ID": str(effect.contract_id),
            "CONTAINER_API_KEY": market.container_key(int(effect.contract_id)),
            "VAST_URL": f"http://127.0.0.1:{self._local.vast_port}",
        }

    def _network(self, label: str) -> dict[str, str]:
        """Ports of its own on this computer's loopback, and its own list of who may log in."""
        rental = self._rental(label)
        if not rental.ports_file.exists():
            self._blocks += 1
            free = iter(free_ports(13, after=self._blocks))
            ports: dict[str, object] = {
                name: {"door_port": next(free), "gpu_port": next(free), "inner_port": next(free)}
                for name in ("ssh", "jupyter", "http")
            }
            ports |= {name: next(free) for name in ("tunnel", "beats", "status", "sync")}
            rental.folder.mkdir(parents=True, exist_ok=True)
            rental.ports_file.write_text(json.dumps(ports))
        keys = rental.folder / "home" / ".ssh" / "authorized_keys"
        user = pwd.getpwuid(os.geteuid()).pw_name
        ports_set = rental.ports_file.read_text()
        return {"DUMONT_PORTS": ports_set, "DUMONT_AUTHORIZED_KEYS": str(keys), "DUMONT_TUNNEL_USER": user}

    # --- the control face

    def rows(self) -> list[dict[str, Any]]:
        with self._lock:
            now = _now()
            return [self._row(market, contract, now) for market in self._markets for contract in market.contracts()]

    def _row(self, market: Marketplace, contract: Contract, now: datetime) -> dict[str, Any]:
        rental = self._rentals.get(contract.label)
        billed = market.billed(contract.id, now)
        return {
            "label": contract.label,
            "provider": market.name,
            "provider_id": str(contract.id),
            "state": contract.state,
            "pid": rental.process.pid if rental and rental.process else None,
            "workspace": str(rental.workspace) if rental else None,
            "usd_per_hour": str(contract.usd_per_hour()),
            "billed_usd": str(sum(billed.values())),
            "billed": {kind: str(amount) for kind, amount in billed.items()},
        }

    def bills(self) -> list[dict[str, Any]]:
        """The markets' own bills of every machine that ever was, per label and kind."""
        with self._lock:
            now = _now()
            return [
                {"provider": market.name, "key": [contract.label, kind], "usd": str(usd)}
                for market in self._markets
                for contract in market.all_contracts()
                for kind, usd in market.billed(contract.id, now).items()
            ]

    def fault(self, label: str, kind: str) -> bool:
        """False when there is no such rental."""
        with self._lock:
            found, rental, now = self._contract(label), self._rentals.get(label), _now()
            if found is None or rental is None:
                return False
            market, id = found
            match kind:
                case "kill":
                    rental.signal(signal.SIGKILL)
                case "freeze":
                    rental.signal(signal.SIGSTOP)
                case "thaw":
                    rental.signal(signal.SIGCONT)
                case "cut":
                    self.uplink.cut(label)
                case "notice":
                    rental.signal(signal.SIGTERM)
                    threading.Timer(NOTICE_S, rental.signal, [signal.SIGKILL]).start()
                case "outbid":
                    market.outbid(id, now)
                case "lose":
                    market.lose(id, now)
            self._settle()
            return True

    def set_gpu(self, label: str, percent: float) -> bool:
        rental = self._rentals.get(label)
        if rental is None:
            return False
        rental.set_gpu(percent)
        return True

    def tamper(self, machine_id: str, properties: dict[str, Any]) -> bool:
        """Make a machine of the Vast market other than its offer says; False when there is no such machine."""
        with self._lock:
            vast = next(market for market in self._markets if isinstance(market, VastSim))
            found = vast.tamper(machine_id, **properties)
            self._keep()
            return found

    def end(self) -> None:
        with self._lock:
            for rental in self._rentals.values():
                rental.kill()
            self._keep()


def control_face(world: World) -> Flask:
    flask = Flask("world")

    @flask.get("/healthz")
    def healthz() -> dict[str, bool]:
        return {"ok": True}

    @flask.get("/rentals")
    def rentals() -> Response:
        return Response(json.dumps(world.rows()), mimetype="application/json")

    @flask.get("/bills")
    def bills() -> Response:
        return Response(json.dumps(world.bills()), mimetype="application/json")

    @flask.get("/faults")
    def faults() -> dict[str, str]:
        return FAULTS

    @flask.post("/rentals/<label>/fault")
    def fault(label: str) -> tuple[dict[str, str], int]:
        kind = str((request.get_json(silent=True) or {}).get("kind"))
        if kind not in FAULTS:
            return {"error": f"kind must be one of {', '.join(FAULTS)}"}, 422
        if not world.fault(label, kind):
            return {"error": f"there is no rental {label}"}, 404
        return {"label": label, "kind": kind}, 200

    @flask.post("/gpu/<label>")
    def gpu(label: str) -> tuple[dict[str, str], int]:
        percent = (request.get_json(silent=True) or {}).get("percent")
        if not isinstance(percent, (int, float)) or not 0 <= percent <= 100:
            return {"error": "percent must be a number from 0 to 100"}, 422
        if not world.set_gpu(label, float(percent)):
            return {"error": f"there is no rental {label}"}, 404
        return {"label": label}, 200

    @flask.post("/machines/<machine_id>")
    def machine(machine_id: str) -> tuple[dict[str, str], int]:
        properties = request.get_json(silent=True)
        if not isinstance(properties, dict) or not properties or not properties.keys() <= HIDDEN:
            return {"error": f"the body names some of {', '.join(sorted(HIDDEN))}"}, 422
        if not world.tamper(machine_id, properties):
            return {"error": f"there is no machine {machine_id}"}, 404
        return {"machine_id": machine_id}, 200

    world.workspace.mount(flask)
    return flask


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """The world's log tells what happened, not who asked."""


def _serve(port: int, app: Any) -> BaseWSGIServer:
    server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _now() -> datetime:
    return datetime.now(UTC)


def main() -> None:
    local = Local(**json.loads((Path(os.environ["DUMONT_STATE"]) / "config.json").read_text()))
    stopping = threading.Event()

    def on_stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, on_stop)
    with s3_server(
        Path(local.state) / "world" / "s3",
        port=local.s3_port,
        bucket=BUCKET,
        access_key=local.s3_access_key,
        secret_key=local.s3_secret_key,
    ):
        _publish_bundle(local)
        world = World(local)
        world.uplink.forward(local.host_api_port, local.api_port)
        world.uplink.forward(local.host_s3_port, local.s3_port)
        _serve(local.vast_port, world.faces["vast"])
        _serve(local.tensordock_port, world.faces["tensordock"])
        if local.gcp_port:
            _serve(local.gcp_port, world.faces["gcp"])
        _serve(local.slack_port, world.workspace.face)
        _serve(local.world_port, control_face(world))
        print(json.dumps({"message": "world_ready", "port": local.world_port}), file=sys.stderr, flush=True)
        while not stopping.is_set():
            world.tick()
            time.sleep(TICK_S)
        world.end()


def _publish_bundle(local: Local) -> None:
    """Put the host bundle at releases/<sha256>, as a deploy does."""
    objects = S3(
        endpoint=f"http://127.0.0.1:{local.s3_port}",
        region="us-east-1",
        bucket=BUCKET,
        key_id=local.s3_access_key,
        secret=local.s3_secret_key,
    )
    built = bundle.build()
    key = f"releases/{built.sha256}"
    if not any(stored.key == key for stored in objects.list(key)):
        objects.put_file(key, built.path)


if __name__ == "__main__":
    main()
