"""Connections to a chosen one of a server's HTTP processes: the kernel chooses, and a test tries until it is right."""

import contextlib
import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.server.harness import Json, eventually
from tests.server.test_operation import PREFIX

LISTENS = "0A"


@dataclass(frozen=True)
class Processes:
    """A server's processes, and how a client reaches one of them."""

    port: int
    first: int
    key: str = "none"

    @property
    def other(self) -> int:
        """The one that listens beside the first."""
        (found,) = (pid for pid in children(self.first) if sockets(pid) & set(inodes(self.port, LISTENS).values()))
        return found

    @property
    def engine(self) -> int:
        (found,) = (pid for pid in children(self.first) if pid != self.other and b"spawn_main" in command(pid))
        return found

    @contextlib.contextmanager
    def connected(self, pid: int) -> Iterator["Connection"]:
        """A connection to this process."""
        with contextlib.ExitStack() as tried:
            for _ in range(64):
                connection = tried.enter_context(contextlib.closing(Connection("127.0.0.1", self.port, timeout=30)))
                connection.key = self.key
                if self.serving(connection) == pid:
                    yield connection
                    return
        raise AssertionError("64 connections, and none to this process")

    def serving(self, connection: "Connection") -> int:
        """Which process has accepted it."""
        connection.connect()
        mine = connection.sock.getsockname()[1]
        found: list[int] = []

        def accepted() -> bool:
            inode = inodes(self.port).get(mine)
            found[:] = [pid for pid in (self.first, *children(self.first)) if inode in sockets(pid)]
            return bool(found)

        eventually(accepted)
        return found[0]


class Connection(http.client.HTTPConnection):
    """One that stays, to one process."""

    key: str

    def ask(self, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, str]:
        """Status and text of an answer."""
        headers = {"authorization": f"Bearer {key or self.key}"}
        self.request(method, path, None if body is None else json.dumps(body), headers)
        response = self.getresponse()
        return response.status, response.read().decode()

    def get(self, path: str) -> Json:
        return json.loads(self.ask("GET", path)[1])

    def error(self, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, str]:
        """Status and code of a refusal."""
        status, text = self.ask(method, path, body, key)
        return status, json.loads(text)["error"]["code"]

    def complete(self, **body: object) -> Json:
        status, text = self.ask("POST", "/v1/completions", body)
        assert status == 200, text
        return json.loads(text)

    def stream(self, **body: object) -> Iterator[str]:
        """Ask at once; what the data lines of the stream hold, as they come."""
        headers = {"authorization": f"Bearer {self.key}"}
        self.request("POST", "/v1/completions", json.dumps({"stream": True, **body}), headers)
        return self._lines()

    def _lines(self) -> Iterator[str]:
        with self.getresponse() as response:
            assert response.status == 200
            for line in response:
                if line.startswith(b"data: "):
                    yield line.decode().strip().removeprefix("data: ")

    def samples(self) -> dict[tuple[str, ...], float]:
        """Every sample of /metrics."""
        return {
            (sample.name.removeprefix(PREFIX), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(self.ask("GET", "/metrics")[1])
            for sample in family.samples
        }


def children(pid: int) -> list[int]:
    """Those that any thread of a process has started."""
    found = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(each) for some in found for each in some]


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def sockets(pid: int) -> set[str]:
    """Inodes of what a process has open."""
    found = set()
    for path in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):
            found.add(str(path.readlink()).removeprefix("socket:[").removesuffix("]"))
    return found


def inodes(port: int, state: str | None = None) -> dict[int, str]:
    """Inodes of the server's ends by the client's port; with a state, by any number."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = [row for row in rows if int(row[1].partition(":")[2], 16) == port and state in (None, row[3])]
    return {i if state else int(row[2].partition(":")[2], 16): row[9] for i, row in enumerate(mine)}
