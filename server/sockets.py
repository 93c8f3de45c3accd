"""Listening sockets, of one process or of several at one address."""

import errno
import socket


def listen(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a listening socket. Raises `OSError` if the address cannot be used.

    `shared`: sockets `beside` this one may listen at the address, too.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if shared:  # another server of this user might share its address: bind once without
            socket.create_server((host, port), family=family).close()
        listener = socket.create_server((host, port), family=family, backlog=2048, reuse_port=shared)
    except OSError as error:
        setting = "--port" if error.errno in {errno.EADDRINUSE, errno.EACCES} else "--host"
        raise OSError(f"cannot listen on {host}:{port} ({error.strerror}); choose another with {setting}") from error
    # Connections inherit it. asyncio sets it only on sockets that name their protocol; without it the second packet of
    # each answer waits 40 ms for the client to acknowledge the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def beside(listener: socket.socket) -> socket.socket:
    """Return a socket at the address of a shared one. Once it listens, the kernel gives each a part of connections."""
    another = socket.socket(listener.family, socket.SOCK_STREAM)
    another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    another.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if another.family == socket.AF_INET6:
        another.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    another.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    another.bind(listener.getsockname())
    return another
