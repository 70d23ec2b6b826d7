"""The rentals' way to the world: a TCP forwarder that knows which rental a connection belongs to.

It counts what every rental sends and receives (the market bills bandwidth), and it can cut one rental off. A
connection's owner is found as the kernel knows it: the socket's inode in /proc/net/tcp, and the process tree that
holds it. Bytes are not looked at, so that signatures over headers stay valid.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PIECE_BYTES = 1 << 18
CONNECT_TIMEOUT_S = 5.0


@dataclass
class Traffic:
    """Bytes since the last look, from the rental's side."""

    up_bytes: int = 0
    down_bytes: int = 0


@dataclass
class Uplink:
    """All ports share one table of owners and cuts. `groups()` maps a rental's label to its process group."""

    groups: Callable[[], Mapping[str, int]]
    _cut: set[str] = field(default_factory=set)
    _traffic: dict[str, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    _open: dict[str, set[socket.socket]] = field(default_factory=lambda: defaultdict(set))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def forward(self, port: int, to_port: int) -> int:
        """Listen on loopback (0 = any free port) and forward to another loopback port; returns the port."""
        listener = socket.create_server(("127.0.0.1", port), backlog=256)
        threading.Thread(target=self._accept, args=(listener, to_port), daemon=True).start()
        bound: int = listener.getsockname()[1]
        return bound

    def cut(self, label: str) -> None:
        """From now on nothing passes: open connections die, new ones are closed at once."""
        with self._lock:
            self._cut.add(label)
            dying = list(self._open.pop(label, ()))
        for sock in dying:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def mend(self, label: str) -> None:
        with self._lock:
            self._cut.discard(label)

    def cuts(self) -> list[str]:
        return sorted(self._cut)

    def take_traffic(self) -> dict[str, Traffic]:
        """What passed since the last call."""
        with self._lock:
            taken, self._traffic = dict(self._traffic), defaultdict(Traffic)
        return taken

    def _accept(self, listener: socket.socket, to_port: int) -> None:
        while True:
            client, address = listener.accept()
            threading.Thread(target=self._serve, args=(client, address[1], to_port), daemon=True).start()

    def _serve(self, client: socket.socket, client_port: int, to_port: int) -> None:
        label = owner_of(client_port, client.getsockname()[1], self.groups())
        with self._lock:
            refused = label in self._cut
            if label and not refused:
                self._open[label].add(client)
        try:
            if not refused:
                with contextlib.suppress(OSError):  # the far end is not there: the rental sees a closed connection
                    server = socket.create_connection(("127.0.0.1", to_port), timeout=CONNECT_TIMEOUT_S)
                    server.settimeout(None)
                    self._pump(client, server, label)
        finally:
            client.close()
            with self._lock:
                self._open[label or ""].discard(client)

    def _pump(self, client: socket.socket, server: socket.socket, label: str | None) -> None:
        """Both ways until either side ends."""
        back = threading.Thread(target=self._copy, args=(server, client, label, "down_bytes"), daemon=True)
        back.start()
        self._copy(client, server, label, "up_bytes")
        back.join()
        server.close()

    def _copy(self, source: socket.socket, target: socket.socket, label: str | None, direction: str) -> None:
        try:
            while piece := source.recv(PIECE_BYTES):
                target.sendall(piece)
                if label:
                    with self._lock:
                        traffic = self._traffic[label]
                        setattr(traffic, direction, getattr(traffic, direction) + len(piece))
        except OSError:
            pass
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def owner_of(client_port: int, listen_port: int, groups: Mapping[str, int]) -> str | None:
    """The rental whose process tree holds the client's end of a loopback connection."""
    inode = _inode(client_port, listen_port)
    if inode is None:
        return None
    labels = {group: label for label, group in groups.items()}
    wanted = f"socket:[{inode}]"
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (label := labels.get(_group(entry.name))) and _holds(entry.name, wanted):
            return label
    return None


def _inode(client_port: int, listen_port: int) -> str | None:
    local, remote = f"0100007F:{client_port:04X}", f"0100007F:{listen_port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == local and fields[2] == remote:
            return fields[9]
    return None


def _group(pid: str) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[2])
    except (OSError, IndexError):
        return -1


def _holds(pid: str, wanted: str) -> bool:
    folder = Path(f"/proc/{pid}/fd")
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                if str(entry.readlink()) == wanted:
                    return True
    return False
