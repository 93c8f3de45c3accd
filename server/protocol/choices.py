"""One choice of a completion: from the engine's events to what may be shown, piece by piece."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from thoughtbubbles.engine import PromptReport, TokenEvent
from thoughtbubbles.server.protocol.echo import Seam
from thoughtbubbles.server.protocol.logprobs import Token
from thoughtbubbles.server.protocol.offsets import Offsets
from thoughtbubbles.server.protocol.requests import CompletionRequest

TokenBytes = Callable[[int], bytes]


class Delta(NamedTuple):
    """What some events add to a choice; all of a choice's deltas joined are the choice."""

    text: str = ""
    """Text to show."""
    echoed: Sequence[Token] = ()
    """Tokens of the prompt, in the first delta of a choice that echoes it."""
    tokens: Sequence[Token] = ()
    """Generated tokens whose text has been shown."""
    prompt_ids: Sequence[int] | None = None
    """The prompt, in the first delta of a choice that returns ids."""
    finish_reason: str | None = None
    """Why the choice ends here."""
    stop_reason: str | int | None = None
    """The stop string or token id that ended it."""

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.text or self.echoed or self.tokens or self.prompt_ids or self.finish_reason)


NOTHING = Delta()


class Choice:
    """Turns one sequence's events into deltas.

    A token is told with the first character of its text, so that streams tell text and tokens in step; its offset
    never points behind the text, also where a stop string cut the text short.
    """

    def __init__(self, prompt: Sequence[int], request: CompletionRequest, token_bytes: TokenBytes) -> None:
        self.completion_tokens = 0
        """Tokens generated so far."""
        self._prompt = prompt
        self._request = request
        self._token_bytes = token_bytes
        # Most streams ask for text alone; then tokens need not be placed in it.
        self._tells_tokens = request.return_token_ids or request.return_fork_counts or request.logprobs is not None
        self._offsets = Offsets()
        self._seam: Seam | None = None  # between an echoed prompt and what follows it
        self._begun = False
        self._shown = 0  # characters of the returned text
        self._held: list[Token] = []
        self._logprob_sum = 0.0

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the generated tokens, which `best_of` ranks by."""
        return self._logprob_sum / max(self.completion_tokens, 1)

    def feed(self, events: Sequence[TokenEvent]) -> Delta:
        """What `events`, the next of this sequence and at least one, add together."""
        head = NOTHING if self._begun else self._begin(events[0])
        generated = [event for event in events if event.token_id is not None]
        self.completion_tokens += len(generated)
        self._logprob_sum += sum([event.logprob for event in generated if event.logprob])
        text, last = "".join([event.text for event in events]), events[-1]
        if self._seam is not None:
            spelt = (self._token_bytes(event.token_id) for event in generated if event.token_id is not None)
            text = self._seam.join(spelt, text, last=last.finish_reason is not None)
        self._shown += len(text)
        if self._tells_tokens:
            self._held += map(self._place, generated)
        tokens = self._told(everything=last.finish_reason is not None) if self._held else ()
        return Delta(head.text + text, head.echoed, tokens, head.prompt_ids, last.finish_reason, last.stop_reason)

    def _begin(self, event: TokenEvent) -> Delta:
        """What is told of the prompt, once."""
        self._begun = True
        text, echoed = self._echo(event.prompt) if self._request.echo else ("", ())
        return Delta(text=text, echoed=echoed, prompt_ids=self._prompt if self._request.return_token_ids else None)

    def _echo(self, report: PromptReport | None) -> tuple[str, Sequence[Token]]:
        tokens = [self._token_bytes(token_id) for token_id in self._prompt]
        self._seam = Seam(b"".join(tokens))
        self._shown = len(self._seam.text)
        places = [self._offsets.place(token) for token in tokens] if self._tells_tokens else []
        return self._seam.text, [] if report is None else list(self._prompt_tokens(report, places))

    def _prompt_tokens(self, report: PromptReport, places: Sequence[int]) -> Iterator[Token]:
        columns = (report.token_logprobs, report.top_logprobs, report.fork_counts)
        # What was not asked for is an empty column.
        for token_id, place, logprob, top_logprobs, fork_count in zip_longest(self._prompt, places, *columns):
            yield Token(token_id, logprob, top_logprobs, fork_count, place)

    def _place(self, event: TokenEvent) -> Token:
        assert event.token_id is not None, "a token was generated"
        offset = self._offsets.place(self._token_bytes(event.token_id))
        return Token(event.token_id, event.logprob, event.top_logprobs, event.fork_count, offset)

    def _told(self, *, everything: bool) -> Sequence[Token]:
        told = [token for token in self._held if everything or token.offset < self._shown]
        self._held = self._held[len(told) :]
        return [token if token.offset <= self._shown else token._replace(offset=self._shown) for token in told]
