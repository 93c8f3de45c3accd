"""The sockets that a server listens on."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from thoughtbubbles.server.sockets import beside, listen

linux = pytest.mark.skipif("sys.platform != 'linux'", reason="other kernels do not share out connections")


@pytest.mark.parametrize("shared", [False, pytest.param(True, marks=linux)])
def test_no_answer_waits_for_an_acknowledgement(shared: bool) -> None:
    with listen("127.0.0.1", 0, shared=shared) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@linux
@pytest.mark.parametrize("other_shares", [False, True])
def test_an_address_of_another_server_is_refused(other_shares: bool) -> None:
    """Also where both would share it: two servers would get each other's requests."""
    with listen("127.0.0.1", 0, shared=other_shares) as taken:
        port = taken.getsockname()[1]
        for shared in (False, True):
            with pytest.raises(
                OSError, match=rf"cannot listen on 127\.0\.0\.1:{port} \(.*\); choose another with --port"
            ):
                listen("127.0.0.1", port, shared=shared)


@pytest.fixture
def accepted() -> Iterator[Callable[[socket.socket], int]]:
    """How many connections a listening socket has."""
    with ExitStack() as open_connections:

        def count(listener: socket.socket) -> int:
            listener.setblocking(False)
            number = 0
            try:
                while True:
                    open_connections.enter_context(listener.accept()[0])
                    number += 1
            except BlockingIOError:
                return number

        yield count


@linux
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_are_shared_once_both_listen(host: str, accepted: Callable[[socket.socket], int]) -> None:
    with listen(host, 0, shared=True) as first, beside(first) as other, ExitStack() as clients:
        for _ in range(8):
            clients.enter_context(socket.create_connection(first.getsockname()[:2]))
        assert accepted(first) == 8
        other.listen()
        for _ in range(64):
            clients.enter_context(socket.create_connection(first.getsockname()[:2]))
        shares = [accepted(first), accepted(other)]
        assert sum(shares) == 64
        assert min(shares) > 8, "one that gets so few of 64 is one case in 10^9"
