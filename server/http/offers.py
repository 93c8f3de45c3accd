"""uvicorn's HTTP/1.1 connection for clients that offer another protocol with their request.

RFC 9110 §7.8: a server may ignore `Upgrade`, and answers the request. Java's client offers HTTP/2 so in its first one.
httptools parses no body after an offer: it leaves all further bytes to a parser of the other protocol.
"""

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Declining(HttpToolsProtocol):
    """Reads a request with an offer once more without it."""

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but for offers."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        except httptools.HttpParserUpgrade as stop:
            (head_end,) = stop.args
            if self._has_offer():
                self._read_again(data[head_end:])

    def on_headers_complete(self) -> None:
        """As uvicorn's, unless the request has an offer and is read again."""
        if not self._has_offer():
            self.on_head()

    def on_head(self) -> None:
        """Start the request whose head has been read."""
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """As uvicorn's, unless the request has an offer and is read again."""
        if not self._has_offer():
            super().on_message_complete()

    def _has_offer(self) -> bool:
        # The parser stops behind CONNECT without an offer, too.
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _read_again(self, behind_head: bytes) -> None:
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        Declining.data_received(self, b"\r\n".join([*lines, b"", behind_head]))
