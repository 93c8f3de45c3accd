"""Log lines on standard error, as text or as JSON; of each request one line, when it is over.

A line tells ids, numbers and reasons: never a key, and a prompt only where that was asked for.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from thoughtbubbles.server.observe.exchange import Exchange
from thoughtbubbles.server.observe.summary import facts

FIELDS = "fields"
"""The attribute of a log record that holds what is told beside the message."""
logger = logging.getLogger("thoughtbubbles.server.requests")
_json = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make an encoder for each field of each line


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in UTC, level, who says it, what; then the fields and the traceback, if there are any."""
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _json(line)


class TextLines(logging.Formatter):
    """The same for people, on one line but for tracebacks."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """The line, with the fields behind it."""
        fields = getattr(record, FIELDS, {})
        told = [f"{name}={_json(value)}" for name, value in fields.items()]
        return " ".join([super().formatMessage(record), *told])


@contextmanager
def writing(log_format: str) -> Iterator[None]:
    """Write what the server says, and what others warn of, in this format inside the block."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root, ours = logging.getLogger(), logging.getLogger("thoughtbubbles.server")
    before = ours.level
    root.addHandler(handler)
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        ours.setLevel(before)


def log_exchange(exchange: Exchange) -> None:
    """Write the line of a request that is over."""
    prompts = {} if exchange.prompts is None else {"prompts": exchange.prompts}
    logger.info("request", extra={FIELDS: facts(exchange) | prompts})
