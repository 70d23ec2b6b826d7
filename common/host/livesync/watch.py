"""Which paths changed: a watch on every directory of the workspace, each event told as a path under its present name.

The kernel names the watch, not the path, and a directory keeps its watch when it moves; so the watches form a tree of
names here, in which a move is one step. An event is only a hint to look at a path: what is sent is what is there then.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from common.host.livesync import inotify
from common.host.livesync.inotify import Event, Inotify

EVENTS_MAX = 20_000
"""Read at once: somebody who writes faster than that is read must not keep others waiting."""
HALF_MOVE_S = 0.02
"""How long the second half of a move may take; the kernel writes both at once, but reading may fall between."""


class Touched(NamedTuple):
    """`is_closed`: nobody writes it at this moment, as far as the event tells."""

    path: bytes
    is_closed: bool
    has_content: bool
    is_new: bool
    """The name was not there before (of a directory: everything below it is unknown)."""


class Moved(NamedTuple):
    source: bytes
    path: bytes
    is_dir: bool


class Overflowed(NamedTuple):
    """The kernel dropped events: everything has to be compared."""


Happening = Touched | Moved | Overflowed


@dataclass(eq=False)
class Node:
    """A watched directory."""

    watch: int
    name: bytes
    above: Node | None
    below: dict[bytes, Node] = field(default_factory=dict)
    is_root: bool = False

    def path(self) -> bytes | None:
        """None when it is not in the workspace any more."""
        names, node = [], self
        while node.above:
            names.append(node.name)
            node = node.above
        return b"/".join(reversed(names)) if node.is_root else None


@dataclass
class Half:
    """Of a move: gone from here, not seen to arrive yet."""

    cookie: int
    path: bytes
    node: Node | None
    at_s: float


class Watches:
    """`is_left_out(path, is_dir)`: names whose events are dropped. `close` when done."""

    def __init__(self, is_left_out: Callable[[bytes, bool], bool]) -> None:
        self.is_left_out = is_left_out
        self._inotify = Inotify()
        self._nodes: dict[int, Node] = {}
        self._root: Node | None = None
        self._half: Half | None = None
        self.blind_because = ""
        """Why not every directory is watched (the kernel allows no more); empty = all are."""

    @property
    def fd(self) -> int:
        return self._inotify.fd

    def close(self) -> None:
        self._inotify.close()

    def watch(self, path: bytes, folder_fd: int) -> None:
        """From here on the directory's changes are told; again for one that is watched already is harmless."""
        above, name = self._above(path)
        if path and above is None:
            return  # what is above is gone or not watched: whoever compares that comes here again
        try:
            number = self._inotify.watch(folder_fd)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            self.blind_because = "the kernel allows no more watches (fs.inotify.max_user_watches)"
            return
        node = self._nodes.get(number)
        if node is None:
            node = self._nodes[number] = Node(number, name, None, is_root=not path)
        if not path:
            self._root = node
        elif (above and node.above is not above) or node.name != name:
            self._detach(node)
            self._attach(node, above, name)

    def read(self, now_s: float) -> list[Happening]:
        """What has happened since, up to this call; at most EVENTS_MAX events of it."""
        happenings: list[Happening] = []
        events = 0
        while events < EVENTS_MAX and (some := self._inotify.read()):
            events += len(some)
            for event in some:
                happenings += self._told(event, now_s)
        return happenings + self.flush(now_s - HALF_MOVE_S)

    def read_all(self, now_s: float) -> list[Happening]:
        """Everything that has happened up to this call; a move without a second half by now leads out of here."""
        happenings: list[Happening] = []
        while some := self._inotify.read():
            for event in some:
                happenings += self._told(event, now_s)
        return happenings + self.flush(now_s)

    def flush(self, before_s: float) -> list[Happening]:
        """A move whose second half did not come by now leads out of the workspace: its name is gone."""
        half = self._half
        if half is None or half.at_s > before_s:
            return []
        self._half = None
        if half.node:
            self._unwatch(half.node)
        return [Touched(half.path, True, True, False)]

    @property
    def has_half(self) -> bool:
        return self._half is not None

    # --- events

    def _told(self, event: Event, now_s: float) -> list[Happening]:
        if event.mask & inotify.Q_OVERFLOW:
            return [Overflowed()]
        if event.mask & inotify.IGNORED:
            if node := self._nodes.pop(event.watch, None):
                self._detach(node)
            return []
        node = self._nodes.get(event.watch)
        folder = node.path() if node else None
        if node is None or folder is None:
            return []
        if not event.name:
            return [Touched(b"", True, False, False)] if node.is_root and event.mask & inotify.ATTRIB else []
        path, is_dir = folder + b"/" + event.name if folder else event.name, bool(event.mask & inotify.IS_DIR)
        if self.is_left_out(path, is_dir):
            return []
        return self._at(event, node, path, is_dir, now_s)

    def _at(self, event: Event, node: Node, path: bytes, is_dir: bool, now_s: float) -> list[Happening]:
        mask = event.mask
        if mask & inotify.MOVED_FROM:
            before = self.flush(now_s)
            self._half = Half(event.cookie, path, self._take_out(node, event.name), now_s)
            return before
        if mask & inotify.MOVED_TO:
            return self._arrived(event, node, path, is_dir, now_s)
        if mask & inotify.CREATE:
            return [Touched(path, is_dir, True, True)]
        if mask & inotify.DELETE:
            return [Touched(path, True, True, False)]
        if mask & inotify.ATTRIB:
            return [Touched(path, True, False, False)]
        return [Touched(path, bool(mask & inotify.CLOSE_WRITE), True, False)]

    def _arrived(self, event: Event, node: Node, path: bytes, is_dir: bool, now_s: float) -> list[Happening]:
        half = self._half
        if half is None or half.cookie != event.cookie:
            return [*self.flush(now_s), Touched(path, True, True, True)]
        self._half = None
        if old := self._take_out(node, event.name):
            self._unwatch(old)
        if half.node:
            self._attach(half.node, node, event.name)
        return [Moved(half.path, path, is_dir)]

    # --- the tree of names

    def _above(self, path: bytes) -> tuple[Node | None, bytes]:
        *names, last = path.split(b"/")
        node = self._root
        for name in names:
            node = node.below.get(name) if node else None
        return node, last

    def _attach(self, node: Node, above: Node | None, name: bytes) -> None:
        node.name, node.above = name, above
        if above:
            if (old := above.below.get(name)) and old is not node:
                old.above = None
            above.below[name] = node

    def _detach(self, node: Node) -> None:
        if node.above and node.above.below.get(node.name) is node:
            del node.above.below[node.name]
        node.above = None

    def _take_out(self, folder: Node, name: bytes) -> Node | None:
        node = folder.below.get(name)
        if node:
            self._detach(node)
        return node

    def _unwatch(self, node: Node) -> None:
        """And all below; their last events come and find nothing."""
        waiting = [node]
        while waiting:
            each = waiting.pop()
            waiting += each.below.values()
            self._nodes.pop(each.watch, None)
            self._inotify.unwatch(each.watch)
