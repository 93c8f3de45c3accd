"""Several servers at one address: under Ray Serve, with its proxies or with HAProxy, or behind HAProxy without Ray."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType

import httpx

from benchmarks.server.ray_serve import ENVIRONMENT, HAPROXY, PROCESSES
from benchmarks.server.serving import free_port, serving
from deploy.haproxy_serve import LOOPBACK, Fleet, find_haproxy

DIRECT = "direct"
"""The row of one server without a proxy."""


@dataclass(frozen=True, kw_only=True)
class Replicas:
    """Servers that run, and where to reach them."""

    name: str
    number: int
    address: str
    pages: Sequence[str]
    """Addresses whose /metrics together have all servers'."""
    session: int
    title: str
    """Pattern of the title of a server's process."""
    broken: frozenset[str]
    """Outcomes of requests when one is killed, beside 200."""

    def processes(self) -> list[int]:
        """Return the process ids of all servers in the session."""
        ps = ["ps", "-ww", "-o", "pid=,args=", "-s", str(self.session)]
        found = (line.split(maxsplit=1) for line in subprocess.check_output(ps, text=True).splitlines())  # noqa: S603
        return [int(pid) for pid, *command in found if re.search(self.title, "".join(command))]

    def lookups(self) -> list[float]:
        """Return the prompt tokens that the servers have looked up in their prefix caches, and those found."""
        text = "".join(httpx.get(f"{page}/metrics", timeout=30).text for page in self.pages)
        names = (f"thoughtbubbles_prefix_cache_{name}_total" for name in ("queries", "hits"))
        return [sum(map(float, re.findall(rf"^{name}\S* (\S+)$", text, re.MULTILINE))) for name in names]


def ray(numbers: Sequence[int], options: Sequence[str]) -> Iterator[Replicas]:
    """Start so many replicas, one number after the other, behind Ray's own proxies."""
    yield from _ray(numbers, options, ENVIRONMENT)


def ray_haproxy(numbers: Sequence[int], options: Sequence[str]) -> Iterator[Replicas]:
    """Do the same with Ray's HAProxy and its fast path."""
    yield from _ray(numbers, options, ENVIRONMENT | HAPROXY)


def _ray(numbers: Sequence[int], options: Sequence[str], environment: Mapping[str, str]) -> Iterator[Replicas]:
    for number in numbers:
        bounds = ("--min-replicas", str(number), "--max-replicas", str(number))
        with serving(*options, *bounds, module="deploy.ray_serve", environment=environment) as (address, session):
            made = Replicas(
                name=str(number), number=number, address=address, pages=[address], session=session,
                title=PROCESSES["replica"], broken=frozenset({"503", "broken"}),
            )  # fmt: skip
            _wait_until(lambda made=made: len(made.processes()) == made.number)  # that each is ready, the warm-up shows
            yield made


def haproxy(numbers: Sequence[int], options: Sequence[str]) -> Iterator[Replicas]:
    """Start the largest number of servers; give one of them alone, then so many behind HAProxy.

    All start at once, which takes no longer than one; those that a number leaves out are idle.
    """
    most = max(numbers)
    servers = ("--servers", str(most))
    with serving(*options, *servers, module="deploy.haproxy_serve") as (address, session):
        port = int(address.rpartition(":")[2])
        pages = [f"http://{LOOPBACK}:{port + number}" for number in range(1, most + 1)]
        _wait_until(lambda: all(map(_ready, pages)))

        def given(name: str, number: int, at: str) -> Replicas:
            return Replicas(
                name=name, number=number, address=at, pages=pages[:number], session=session,
                title="thoughtbubbles.server .*--port", broken=frozenset({"502", "ConnectionResetError"}),
            )  # fmt: skip

        yield given(DIRECT, 1, pages[0])
        for number in numbers:
            with _proxied(number, port) as at:
                yield given(str(number), number, at)


@contextmanager
def _proxied(servers: int, port: int) -> Iterator[str]:
    """Put a HAProxy of its own in front of the first servers of the fleet at `port`; give its address."""
    fleet = Fleet(servers=servers, host=LOOPBACK, port=port, options=(), devices=None, haproxy=find_haproxy())
    command, variables = fleet.proxy()
    at = f"{LOOPBACK}:{free_port()}"
    with subprocess.Popen(command, env=variables | {"BIND": at}) as process:  # noqa: S603
        try:
            _wait_until(lambda: _ready(f"http://{at}"))
            yield f"http://{at}"
        finally:
            process.terminate()


def _ready(address: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"{address}/ready").status_code == httpx.codes.OK
    return False


def _wait_until(true: Callable[[], bool]) -> None:
    for _ in range(1800):
        if true():
            return
        time.sleep(0.1)
    raise TimeoutError("not all replicas ran within three minutes")


KINDS: Mapping[str, Callable[[Sequence[int], Sequence[str]], Iterator[Replicas]]] = MappingProxyType(
    {"ray": ray, "ray-haproxy": ray_haproxy, "haproxy": haproxy}
)
