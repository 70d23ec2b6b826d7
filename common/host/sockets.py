"""How many bytes each TCP connection of this network namespace has moved, from the kernel's own account.

Netlink's sock_diag (man 7 sock_diag; struct inet_diag_msg and tcp_info in linux/inet_diag.h and linux/tcp.h): what
`ss -ti` shows. No interface is looked at, so that processes that share it with others are told apart.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, INET_DIAG_INFO = 4, 20, 2
NLM_F_REQUEST, NLM_F_DUMP, NLMSG_ERROR, NLMSG_DONE = 0x1, 0x300, 2, 3
CONNECTED = sum(1 << state for state in (1, 4, 5, 8, 9, 11))
"""TCP_ESTABLISHED, both FIN_WAITs, CLOSE_WAIT, LAST_ACK, CLOSING: those that a process may still hold."""
HEADER, MESSAGE, ATTRIBUTE = struct.Struct("=LHHLL"), struct.Struct("=4BHH56x4xL"), struct.Struct("=HH")
"""nlmsghdr; family, state, timer, retrans, source and destination port (in network order), inode; rtattr."""
BYTES_AT = 120
"""tcpi_bytes_acked and tcpi_bytes_received within tcp_info."""
PIECES_MAX = 10_000
"""Datagrams of one answer."""
TIMEOUT_S = 1.0


class Connection(NamedTuple):
    inode: int
    local_port: int
    sent_bytes: int
    received_bytes: int


def connections() -> list[Connection]:
    """All of IPv4 and IPv6. Raises OSError where the kernel does not tell."""
    return [*_of(socket.AF_INET), *_of(socket.AF_INET6)]


def _of(family: int) -> Iterator[Connection]:
    body = struct.pack("=4BI48x", family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0, CONNECTED)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(TIMEOUT_S)
        netlink.send(HEADER.pack(HEADER.size + len(body), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + body)
        for _ in range(PIECES_MAX):
            for kind, message in _messages(netlink.recv(1 << 16)):
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", message)[0], "the kernel refuses to list connections")
                if connection := _connection(message):
                    yield connection
    raise OSError(f"a list of connections in more than {PIECES_MAX} pieces")


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + HEADER.size <= len(data):
        length, kind, *_ = HEADER.unpack_from(data, at)
        if length < HEADER.size:
            raise OSError("a malformed answer of the kernel")
        yield kind, data[at + HEADER.size : at + length]
        at += (length + 3) & ~3


def _connection(message: bytes) -> Connection | None:
    """None for one that the kernel tells nothing of: it is just being opened or closed, and carries nothing.

    An old kernel's tcp_info may be too short for the counters: then nothing is known (OSError).
    """
    local_port, inode = MESSAGE.unpack_from(message)[4], MESSAGE.unpack_from(message)[6]
    at = MESSAGE.size
    while at + ATTRIBUTE.size <= len(message):
        length, kind = ATTRIBUTE.unpack_from(message, at)
        if kind == INET_DIAG_INFO and length < ATTRIBUTE.size + BYTES_AT + 16:
            raise OSError("the kernel does not count the bytes of connections")
        if kind == INET_DIAG_INFO:
            sent, received = struct.unpack_from("=QQ", message, at + ATTRIBUTE.size + BYTES_AT)
            return Connection(inode, socket.ntohs(local_port), sent, received)
        at += max(ATTRIBUTE.size, (length + 3) & ~3)
    return None
