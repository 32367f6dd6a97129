"""A port that is kept for a server which listens later."""

import contextlib
import errno
import socket
import sys

import pytest

from ownpod.processes import HeldPort


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps a port")
def test_a_held_port_is_its_servers_also_after_a_restart_and_nobody_elses():
    with contextlib.closing(HeldPort()) as held:
        place = ("127.0.0.1", held.number)
        for _ in range(2):
            with socket.socket() as other, pytest.raises(OSError, match="in use") as caught:
                other.bind(place)
            assert caught.value.errno == errno.EADDRINUSE
            # It sets SO_REUSEADDR, as gunicorn does.
            with socket.create_server(place) as server, socket.create_connection(place, 60) as to:
                accepted, _ = server.accept()
                accepted.close()
                assert to.recv(1) == b""
