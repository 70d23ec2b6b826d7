"""The simulated Slack workspace in the world: its face on a port, deliveries to the app, its journal, its people."""

from __future__ import annotations

import json
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from flask import Flask, Response, request

from infra.demo.http_face import HttpFace
from infra.demo.slack import CHANNEL, Delivery, SlackSim, buttons
from infra.local.config import Local

ANSWER_WITHIN_S = 3.0
"""Slack's patience."""
USER = "U0DEMO0001"


class Workspace:
    def __init__(self, local: Local, folder: Path, clock: Callable[[], datetime]) -> None:
        self._app_url, self._clock, self._lock = f"http://127.0.0.1:{local.api_port}/slack", clock, threading.RLock()
        self._journal = folder / "slack.json"
        self.sim = SlackSim(
            rng=random.Random(f"slack {local.seed} {clock().timestamp()}"),
            token=local.slack_bot_token,
            signing_secret=local.slack_signing_secret,
            base_url=f"http://127.0.0.1:{local.slack_port}",
        )
        if self._journal.exists():
            self.sim.restore(json.loads(self._journal.read_text()))
        self.face = HttpFace(self.sim, clock=clock, lock=self._lock, after=self._keep)

    def tick(self) -> None:
        with self._lock:
            due = self.sim.take_due(self._clock())
        for delivery in due:
            threading.Thread(target=self._deliver, args=(delivery,), daemon=True).start()

    def _deliver(self, delivery: Delivery) -> None:
        headers = self.sim.signed(delivery, self._clock())
        body = b""
        try:
            asked = urllib.request.Request(self._app_url, delivery.body, headers)
            with urllib.request.urlopen(asked, timeout=ANSWER_WITHIN_S) as answer:
                status, body = answer.status, answer.read()
        except urllib.error.HTTPError as refusal:
            status = refusal.code
            refusal.close()
        except OSError:
            status = None
        with self._lock:
            self.sim.answered(delivery, status, body, self._clock())
            self._keep()

    def _keep(self) -> None:
        new = self._journal.with_suffix(".new")
        new.write_text(json.dumps(self.sim.to_json()))
        new.replace(self._journal)

    # --- the control face

    def mount(self, flask: Flask) -> None:
        """People of the workspace, for whoever plays them; what a person reads is at GET /slack/messages."""

        @flask.post("/slack/command")
        def command() -> tuple[dict[str, str], int]:
            asked = request.get_json(silent=True) or {}
            with self._lock:
                url = self.sim.command(
                    str(asked.get("text", "")),
                    user=str(asked.get("user", USER)),
                    channel=str(asked.get("channel", CHANNEL)),
                    now=self._clock(),
                )
            return {"response_url": url}, 202

        @flask.post("/slack/press")
        def press() -> tuple[dict[str, str], int]:
            asked = request.get_json(silent=True) or {}
            ts, action_id, user = str(asked.get("ts")), str(asked.get("action_id")), str(asked.get("user", USER))
            try:
                with self._lock:
                    return {"response_url": self.sim.press(ts, action_id, user=user, now=self._clock())}, 202
            except KeyError:
                return {"error": f"there is no button {action_id} in a message {ts}"}, 404

        @flask.get("/slack/messages")
        def messages() -> Response:
            with self._lock:
                shown = [{**asdict(m), "buttons": [*buttons(m.content)]} for m in self.sim.messages]
            return Response(json.dumps(shown), mimetype="application/json")
