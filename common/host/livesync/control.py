"""Asking the sender that runs on this machine: `dumont-host sync`, and the barrier after a checkpoint.

A training script passes it with one line, after it has saved:

    subprocess.run(["dumont-host", "sync", "--wait"], check=True)

or a shell script: `dumont-host sync --wait || echo "not on the standby"`. One line of JSON each way over a unix socket
beside the agent's state; a sender that is not there, or dies meanwhile, is never taken for an answer.
"""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

from common.host.livesync.errors import NotInSync

SOCKET = "livesync.sock"
LINE_BYTES_MAX = 1 << 16
ANSWER_WITHIN_S = 5.0
"""Beyond what the barrier itself may take."""


async def serve(home: Path, sender: Any) -> asyncio.Server:
    """Everybody on the machine may ask, as everybody may write to the workspace."""
    path = home / SOCKET
    path.unlink(missing_ok=True)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await reader.readline())
            writer.write(json.dumps(await _answer(sender, asked)).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, TypeError, AttributeError):
            return  # it asked nothing that can be answered, or does not listen any more
        finally:
            writer.close()

    server = await asyncio.start_unix_server(answer, path, limit=LINE_BYTES_MAX)
    path.chmod(0o666)
    return server


async def _answer(sender: Any, asked: dict[str, Any]) -> dict[str, Any]:
    if asked.get("wait_s") is not None:
        try:
            seq = await sender.wait(float(asked["wait_s"]), compares=bool(asked.get("compares")))
        except NotInSync as error:
            return {"ok": False, "detail": str(error)}
        return {"ok": True, "seq": seq}
    return {"ok": True, "trouble": sender.trouble, **sender.standing.model_dump()}


def ask(home: Path, *, wait_s: float | None = None, compares: bool = False) -> dict[str, Any]:
    """How the sync stands; with `wait_s` only after everything changed before this call is on the standby.

    Raises `NotInSync`, also when nobody answers.
    """
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout((wait_s or 0) + ANSWER_WITHIN_S)
            line.connect(str(home / SOCKET))
            line.sendall(json.dumps({"wait_s": wait_s, "compares": compares}).encode() + b"\n")
            with line.makefile("rb") as answers:
                answer = json.loads(answers.readline(LINE_BYTES_MAX))
    except (OSError, ValueError) as error:
        raise NotInSync(f"no live sync answers on this machine ({error or 'it ended'})") from None
    if answer.get("ok") is not True:
        raise NotInSync(str(answer.get("detail", "the live sync gave no usable answer")))
    return {name: value for name, value in answer.items() if name != "ok"}
