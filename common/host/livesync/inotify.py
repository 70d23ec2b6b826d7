"""The kernel's own word on what changes in a directory: inotify through libc, without anything else.

Raises OSError as the kernel does (ENOSPC = no more watches are allowed for this user).
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import NamedTuple

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x40, 0x80, 0x100, 0x200
Q_OVERFLOW, IGNORED, IS_DIR = 0x4000, 0x8000, 0x40000000
_ONLY_DIR, _EXCLUDE_UNLINKED = 0x01000000, 0x04000000
CHANGES = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE | _ONLY_DIR | _EXCLUDE_UNLINKED
READ_BYTES = 1 << 18
_HEAD = struct.Struct("iIII")


class Event(NamedTuple):
    watch: int
    mask: int
    cookie: int
    """The same in both halves of a move."""
    name: bytes
    """Empty: of the watched directory itself."""


class Inotify:
    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._check(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def watch(self, folder_fd: int) -> int:
        """The watch's number: the same again for a directory that is watched already, under whatever name."""
        path = b"/proc/self/fd/%d" % folder_fd
        return self._check(self._libc.inotify_add_watch(self.fd, path, CHANGES))

    def unwatch(self, watch: int) -> None:
        """One that is gone already is no matter."""
        self._libc.inotify_rm_watch(self.fd, watch)

    def read(self) -> list[Event]:
        """What has happened up to this call and was not read yet, in order; at most READ_BYTES of it."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return []
        events, at = [], 0
        while at < len(data):
            watch, mask, cookie, size = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            events.append(Event(watch, mask, cookie, data[at : at + size].rstrip(b"\0")))
            at += size
        return events

    def close(self) -> None:
        os.close(self.fd)

    def _check(self, result: int) -> int:
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result
