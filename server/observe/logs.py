"""Log lines on standard error, as text or JSON; one line for each request, when it is over.

A line has ids, numbers and reasons. It never has a key, and has prompts only if the operator sets log_prompts.
"""

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from thoughtbubbles.server.observe.exchange import Exchange
from thoughtbubbles.server.observe.summary import summary

FIELDS = "fields"
"""The attribute of a log record that has the fields beside the message."""
logger = logging.getLogger("thoughtbubbles.server.requests")
_json = json.JSONEncoder(ensure_ascii=False).encode  # `json.dumps` would make an encoder for each field of each line
_MARKS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""What JSON does not escape, and yet ends a line, controls a terminal or reverses the text after it."""


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return time in UTC, level, logger and message; then the fields, and the traceback if there is one."""
        line = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _escaped(_json(line))


class TextLines(logging.Formatter):
    """Formats a record as a line for people, followed by the traceback if there is one."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Return the line, with the fields at its end."""
        fields = [f"{name}={_json(value)}" for name, value in getattr(record, FIELDS, {}).items()]
        return _escaped(" ".join([super().formatMessage(record), *fields]))


def _escaped(line: str) -> str:
    return _MARKS.sub(lambda mark: f"\\u{ord(mark[0]):04x}", line)


@contextmanager
def writing(log_format: str) -> Iterator[None]:
    """Write the server's log, and the warnings of other libraries, in this format inside the block."""
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
    """Write the log line of a request that is over."""
    prompts = {} if exchange.prompts is None else {"prompts": exchange.prompts}
    logger.info("request", extra={FIELDS: summary(exchange) | prompts})
