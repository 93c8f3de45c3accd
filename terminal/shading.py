"""Write tokens to the terminal, shaded by their streams; plain if colours are unavailable or switched off."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from thoughtbubbles.engine import Detokenizer
from thoughtbubbles.model import Tokenizer

# From the 256 colours that nearly every terminal has, cool to warm. All are of medium lightness: black letters are
# readable on them, and they stand out on dark and light backgrounds. One stream has no shade; the last shade also means
# more streams.
SHADES = [
    Style(),
    *(Style(color="color(16)", bgcolor=f"color({code})") for code in (153, 116, 150, 185, 221, 215, 209)),
]
FAINT = Style(dim=True)
# Generated text must not control the terminal: control characters other than tab and newline become visible symbols.
PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class TokenWriter:
    """Writes text token by token."""

    def __init__(self, most_streams: int, console: Console) -> None:
        """Write to `console`; a token has at most `most_streams` streams."""
        self._console = console
        self._most = most_streams
        self._streams = 0
        colours = self._console.color_system is not None and not self._console.no_color
        self.shaded = colours and most_streams > 1
        """Whether shades are shown, so that the number of streams is needed."""

    def write(self, text: str, streams: int | None = None) -> None:
        """Show the text that one token adds, shaded by its `streams`.

        A part of a character adds no text yet. A character of several tokens gets the shade of the token with the most
        streams.
        """
        self._streams = max(self._streams, streams or 1)
        if text:
            self._out(text, self._shade(self._streams))
            self._streams = 0

    def write_all(self, ids: Sequence[int], streams: Sequence[int], tokenizer: Tokenizer) -> None:
        """Show several tokens, such as a prompt's."""
        detokenizer = Detokenizer(tokenizer)
        for token_id, count in zip(ids, streams, strict=True):
            self.write(detokenizer.push(token_id).text, count)
        self.write(detokenizer.flush())

    def note(self, text: str) -> None:
        """Show a line about the text, faint. In a file or a pipe, show nothing."""
        if self._console.is_terminal:
            self._out(text + "\n", FAINT if self.shaded else Style())

    def legend(self) -> None:
        """Show what the shades mean, if shades are shown."""
        if not self.shaded:
            return
        self._out("streams of a token ", FAINT)
        for streams, shade in enumerate(SHADES[: self._most], start=1):
            more = "+" if streams == len(SHADES) < self._most else " "
            self._out(f" {streams}{more}", shade)
        self._out("\n", Style())

    def _shade(self, streams: int) -> Style:
        return SHADES[min(streams, len(SHADES)) - 1] if self.shaded else Style()

    def _out(self, text: str, style: Style) -> None:
        if self._console.is_terminal:
            text = text.translate(PICTURES)
        # Newlines have no shade: it would colour the rest of the line when the terminal scrolls.
        parts = [Segment(part, None if part == "\n" else style) for part in re.split("(\n)", text) if part]
        # Segments are printed unchanged; plain text rich would reformat: expand tabs, drop control characters.
        self._console.print(Segments(parts), crop=False, end="")
