"""A client that several processes have after a fork: each process has connections of its own."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SCRIPT = """
import os, sys
from thoughtbubbles_client import Client

with Client(sys.argv[1]) as client:
    client.tokenize("parent")
    child = os.fork()
    if not child:
        client.tokenize("child")
        client.tokenize("child")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    client.tokenize("parent")
"""


@contextmanager
def server() -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """A server that keeps connections open, and the text of each request with the port that it came from."""
    asked: list[tuple[str, int]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append(("child" if b"child" in body else "parent", self.client_address[1]))
            answer = b'{"tokens": [1]}'
            self.send_response(200)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Stay quiet."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}", asked
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def test_a_fork_does_not_share_connections() -> None:
    """On one connection each process could read the answer to the other's request."""
    with server() as (url, asked):
        subprocess.run([sys.executable, "-c", SCRIPT, url], check=True, timeout=60)
    (first, own), (_, other), (_, again), (last, kept) = asked
    assert (first, last) == ("parent", "parent")
    assert own == kept
    assert other == again != own
