"""Does a notebook kernel execute something? Asked of the Jupyter servers that the user runs on this host.

A server writes its address and token into its runtime folder (Jupyter Server's documentation); each kernel's
`execution_state` is in GET api/kernels. A server that refuses us is no obstacle: its
kernels show themselves by the CPU.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.host.owner import as_owner_of

TIMEOUT_S = 1.0
SERVERS_MAX = 4
"""Asked at one look."""
RUNTIME = ".local/share/jupyter/runtime"
SERVER_FILES = ("jpserver-{pid}.json", "nbserver-{pid}.json")
REFUSED = (401, 403, 404)


def busy_kernels(pids: Iterable[int]) -> int | None:
    """How many; None = a server is there and did not answer."""
    servers = [server for pid in pids if (server := _server(pid))][:SERVERS_MAX]
    counts = [_busy(server) for server in servers]
    return None if None in counts else sum(count for count in counts if count)


def _server(pid: int) -> Mapping[str, Any] | None:
    """What the process wrote of itself, if it is a Jupyter server."""
    try:
        if b"jupyter" not in Path(f"/proc/{pid}/cmdline").read_bytes():
            return None
        with as_owner_of(pid):
            lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    env = {name: os.fsdecode(value) for name, _, value in (line.partition(b"=") for line in lines)}
    folder = Path(env.get(b"JUPYTER_RUNTIME_DIR") or Path(env.get(b"HOME", "/root")) / RUNTIME)
    for name in SERVER_FILES:
        try:
            server = json.loads((folder / name.format(pid=pid)).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(server, dict):
            return server
    return None


def _busy(server: Mapping[str, Any]) -> int | None:
    """Over loopback only, whatever address the server says it has: its certificate proves nothing there."""
    import httpx

    scheme = "https" if str(server.get("url", "")).startswith("https") or server.get("secure") else "http"
    url = f"{scheme}://127.0.0.1:{server.get('port')}{server.get('base_url', '/')}api/kernels"
    headers = {"Authorization": f"token {server.get('token', '')}"}
    try:
        with httpx.Client(trust_env=False, verify=False, timeout=TIMEOUT_S) as http:
            answer = http.get(url, headers=headers)
        if answer.status_code in REFUSED:
            return 0
        kernels: list[dict[str, Any]] = answer.raise_for_status().json()
        return len([kernel for kernel in kernels if kernel["execution_state"] == "busy"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return None
