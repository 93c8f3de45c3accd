"""What the HTTP processes of a server ask each other."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Listening:
    """Report to the first that another process listens, and has the model. Answer: None."""


@dataclass(frozen=True)
class Count:
    """Ask another what its routes and connections have counted. Answer: `Families`."""


@dataclass(frozen=True)
class Drain:
    """Have another refuse new requests, and end when running ones have finished. Answer: None."""


@dataclass(frozen=True)
class End:
    """Have another end at once. Answer: None."""


@dataclass(frozen=True)
class Scrape:
    """Ask the first for the metrics. Answer: the text."""


@dataclass(frozen=True)
class Cancel:
    """Ask to end a generation. Answer: whether it ran."""

    completion_id: str


@dataclass(frozen=True)
class LoadCheckpoint:
    """Ask the first to replace the weights. Answer: their version and revision, or the error."""

    checkpoint: str


Question = Listening | Count | Drain | End | Scrape | Cancel | LoadCheckpoint
