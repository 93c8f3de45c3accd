"""What another HTTP process has of the rest of the server."""

import socket
from dataclasses import dataclass

from thoughtbubbles.server.bridge.process import Ends


@dataclass(frozen=True)
class Link:
    """Ends of pipes and of a channel. They can be sent to a process that is being started."""

    engine: Ends
    first: socket.socket
    """Of the channel to the first process."""
