"""One choice of a completion: turns the engine's events into pieces that a client may see."""

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from thoughtbubbles.engine import PromptReport, TokenEvent
from thoughtbubbles.server.protocol.echo import EchoJoiner
from thoughtbubbles.server.protocol.logprobs import Token
from thoughtbubbles.server.protocol.offsets import Offsets
from thoughtbubbles.server.protocol.requests import CompletionRequest

TokenBytes = Callable[[int], bytes]


class Delta(NamedTuple):
    """What some events add to a choice; the sum of its deltas is the choice."""

    text: str = ""
    """Text to send."""
    echoed: Sequence[Token] = ()
    """The prompt's tokens, in the first delta of a choice that echoes it."""
    tokens: Sequence[Token] = ()
    """Generated tokens whose text has been sent."""
    prompt_ids: Sequence[int] | None = None
    """The prompt, in the first delta of a choice that returns ids."""
    finish_reason: str | None = None
    """Why the choice ends with this delta."""
    stop_reason: str | int | None = None
    """The stop string or token id that ended it."""

    def __bool__(self) -> bool:
        """Whether it has anything to send."""
        return bool(self.text or self.echoed or self.tokens or self.prompt_ids or self.finish_reason)


EMPTY = Delta()


class Choice:
    """Turns the events of one sequence into deltas.

    A token is sent with the first character of its text, so that text and tokens of a stream match. Its offset never
    points behind the text, even if a stop string shortened the text.
    """

    def __init__(self, prompt: Sequence[int], request: CompletionRequest, token_bytes: TokenBytes) -> None:
        self.completion_tokens = 0
        """Tokens generated so far."""
        self._prompt = prompt
        self._request = request
        self._token_bytes = token_bytes
        # Most streams return text alone; then offsets need not be computed.
        reports_forks = request.return_fork_counts or request.return_fork_scores
        self._returns_tokens = request.return_token_ids or reports_forks or request.logprobs is not None
        self._offsets = Offsets()
        self._joiner: EchoJoiner | None = None  # of an echoed prompt and its completion
        self._started = False
        self._sent = 0  # characters of the returned text
        self._unsent_tokens: list[Token] = []
        self._logprob_sum = 0.0

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the generated tokens, which `best_of` ranks by."""
        return self._logprob_sum / max(self.completion_tokens, 1)

    def feed(self, events: Sequence[TokenEvent]) -> Delta:
        """Return the delta of `events`, the next of this sequence and at least one."""
        head = EMPTY if self._started else self._start(events[0])
        generated = [event for event in events if event.token_id is not None]
        self.completion_tokens += len(generated)
        self._logprob_sum += sum([event.logprob for event in generated if event.logprob])
        text, last = "".join([event.text for event in events]), events[-1]
        finished = last.finish_reason is not None
        if self._joiner is not None:
            spelling = (self._token_bytes(event.token_id) for event in generated if event.token_id is not None)
            text = self._joiner.join(spelling, text, last=finished)
        self._sent += len(text)
        if self._returns_tokens:
            self._unsent_tokens += map(self._token, generated)
        tokens = self._take_tokens(everything=finished) if self._unsent_tokens else ()
        return Delta(head.text + text, head.echoed, tokens, head.prompt_ids, last.finish_reason, last.stop_reason)

    def _start(self, event: TokenEvent) -> Delta:
        """Return the delta of the prompt."""
        self._started = True
        text, echoed = self._echo(event.prompt) if self._request.echo else ("", ())
        return Delta(text=text, echoed=echoed, prompt_ids=self._prompt if self._request.return_token_ids else None)

    def _echo(self, report: PromptReport | None) -> tuple[str, Sequence[Token]]:
        tokens = [self._token_bytes(token_id) for token_id in self._prompt]
        self._joiner = EchoJoiner(b"".join(tokens))
        self._sent = len(self._joiner.text)
        offsets = [self._offsets.add(token) for token in tokens] if self._returns_tokens else []
        return self._joiner.text, [] if report is None else list(self._prompt_tokens(report, offsets))

    def _prompt_tokens(self, report: PromptReport, offsets: Sequence[int]) -> Iterator[Token]:
        scored = zip_longest(self._prompt, report.token_logprobs, report.top_logprobs)
        # Columns that the request does not return are empty.
        columns = (scored, report.fork_counts, report.fork_scores, offsets)
        for (token_id, logprob, top_logprobs), count, scores, offset in zip_longest(*columns):
            yield Token(token_id, logprob, top_logprobs, count, scores, offset)

    def _token(self, event: TokenEvent) -> Token:
        assert event.token_id is not None, "a token was generated"
        offset = self._offsets.add(self._token_bytes(event.token_id))
        return Token(event.token_id, event.logprob, event.top_logprobs, event.fork_count, event.fork_scores, offset)

    def _take_tokens(self, *, everything: bool) -> Sequence[Token]:
        """Remove and return the tokens whose first character has been sent, or all."""
        taken = [token for token in self._unsent_tokens if everything or token.offset < self._sent]
        self._unsent_tokens = self._unsent_tokens[len(taken) :]
        return [token if token.offset <= self._sent else token._replace(offset=self._sent) for token in taken]
