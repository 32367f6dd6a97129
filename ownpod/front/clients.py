"""Clients that have closed their connection while HAProxy holds their request, read from Linux's table of sockets.

While rules of a request run, and thus while Lua holds it, HAProxy does not read from the client, and does not notice its end.
"""

import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import Collection, Iterator

NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY, _REQUEST, _DUMP, _DONE, _ERROR = 20, 0x01, 0x300, 3, 2
CLOSE_WAIT = 8
"""State of a TCP connection whose peer has sent its end, and which this host has not closed."""

_HEADER = struct.Struct("=IHHII")
_SOCKET = struct.Struct("!HH16s16s")
_SOCKET_AT = _HEADER.size + 4


def closed_by_clients(ports: Collection[int]) -> set[str]:
    """``<address>:<port>`` of clients that have closed a connection to one of these ports of this host.

    Linux filters by the state, so the cost does not depend on the number of connections. On other systems: none.
    """
    if sys.platform != "linux":
        return set()
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for family in (socket.AF_INET, socket.AF_INET6):
            found |= {peer for port, peer in _sockets(family) if port in ports}
    return found


def _sockets(family: int) -> Iterator[tuple[int, str]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_SOCK_DIAG) as link:
        link.settimeout(1)
        request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 1 << CLOSE_WAIT) + bytes(
            48
        )
        length = _HEADER.size + len(request)
        link.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 1, 0) + request)
        while True:
            data = link.recv(65536)
            while data:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind in {_DONE, _ERROR} or length < _HEADER.size:
                    return
                port, peer_port, _, peer = _SOCKET.unpack_from(data, _SOCKET_AT)
                yield port, f"{_address(family, peer)}:{peer_port}"
                data = data[(length + 3) & ~3 :]


def _address(family: int, raw: bytes) -> str:
    if family == socket.AF_INET:
        return str(ipaddress.IPv4Address(raw[:4]))
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)
