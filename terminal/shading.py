"""Text in the terminal, each token shaded by its streams; plain where colours cannot be shown or are not wanted."""

import re
from collections.abc import Sequence

from rich.console import Console
from rich.segment import Segment, Segments
from rich.style import Style

from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.model import Tokenizer

# Of the 256 colours that nearly every terminal has, from cool to warm and all of middling lightness: black letters can
# be read on them, and they stand out from a dark page as from a light one. One stream has no shade, the
# last is of all that have more.
SHADES = [
    Style(),
    *(Style(color="color(16)", bgcolor=f"color({code})") for code in (153, 116, 150, 185, 221, 215, 209)),
]
FAINT = Style(dim=True)
# What a model writes must not steer the terminal: control characters but tab and newline are shown as their pictures.
PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class TokenWriter:
    """Writes text token by token."""

    def __init__(self, most_streams: int, console: Console) -> None:
        """`most_streams` is how many streams a token can have."""
        self._console = console
        self._most = most_streams
        self._streams = 0
        colours = self._console.color_system is not None and not self._console.no_color
        self.shaded = colours and most_streams > 1
        """Whether shades are shown, so that streams are worth asking for."""

    def write(self, text: str, streams: int | None = None) -> None:
        """Show what one more token adds, shaded where `streams` is told.

        A token may add nothing yet, being part of a character: the character has the shade of its token with the most
        streams.
        """
        self._streams = max(self._streams, streams or 1)
        if text:
            self._out(text, self._shade(self._streams))
            self._streams = 0

    def write_all(self, ids: Sequence[int], streams: Sequence[int], tokenizer: Tokenizer) -> None:
        """Show tokens that are known already, such as a prompt's."""
        detokenizer = Detokenizer(tokenizer)
        for token_id, count in zip(ids, streams, strict=True):
            self.write(detokenizer.push(token_id).text, count)
        self.write(detokenizer.flush())

    def note(self, text: str) -> None:
        """Show a line about the text, faint. To a file or a pipe goes the text alone."""
        if self._console.is_terminal:
            self._out(text + "\n", FAINT if self.shaded else Style())

    def legend(self) -> None:
        """Show what the shades mean, where there are any."""
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
        # Newlines go without a shade, which would colour the rest of the line where the terminal scrolls.
        parts = [Segment(part, None if part == "\n" else style) for part in re.split("(\n)", text) if part]
        # Segments are shown as they are, where rich would lay text out: expand tabs and drop control characters.
        self._console.print(Segments(parts), crop=False, end="")
