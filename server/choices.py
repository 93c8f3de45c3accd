"""One choice of a completion: from the engine's events to what may be shown, piece by piece."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from engine import PromptReport, TokenEvent
from server.logprobs import Token
from server.offsets import Offsets
from server.schemas import CompletionRequest

TokenBytes = Callable[[int], bytes]


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What one event adds to a choice; all of a choice's deltas joined are the choice."""

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

    @classmethod
    def join(cls, deltas: Sequence["Delta"]) -> "Delta":
        """The whole of what `deltas` (at least one, the last one finished) tell bit by bit."""
        return cls(
            text="".join(delta.text for delta in deltas),
            echoed=deltas[0].echoed,
            tokens=[token for delta in deltas for token in delta.tokens],
            prompt_ids=deltas[0].prompt_ids,
            finish_reason=deltas[-1].finish_reason,
            stop_reason=deltas[-1].stop_reason,
        )


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
        self._offsets = Offsets()
        self._begun = False
        self._shown = 0  # characters of the returned text
        self._held: list[Token] = []
        self._logprob_sum = 0.0

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the generated tokens, which `best_of` ranks by."""
        return self._logprob_sum / max(self.completion_tokens, 1)

    def feed(self, event: TokenEvent) -> Delta:
        """What `event`, the next of this sequence, adds."""
        first = not self._begun
        self._begun = True
        text, echoed = self._echo(event.prompt) if first and self._request.echo else ("", [])
        if event.token_id is not None:
            self._hold(event, event.token_id)
        self._shown += len(event.text)
        return Delta(
            text=text + event.text,
            echoed=echoed,
            tokens=self._told(everything=event.finish_reason is not None),
            prompt_ids=self._prompt if first and self._request.return_token_ids else None,
            finish_reason=event.finish_reason,
            stop_reason=event.stop_reason,
        )

    def _echo(self, report: PromptReport | None) -> tuple[str, Sequence[Token]]:
        text = b"".join(map(self._token_bytes, self._prompt)).decode("utf-8", "replace")
        self._shown = len(text)
        self._offsets = Offsets(len(text))
        return text, [] if report is None else list(self._prompt_tokens(report))

    def _prompt_tokens(self, report: PromptReport) -> Iterator[Token]:
        offsets = Offsets()
        columns = (report.token_logprobs, report.top_logprobs, report.fork_counts)
        # What was not asked for is an empty column.
        for token_id, logprob, top_logprobs, fork_count in zip_longest(self._prompt, *columns):
            offset = offsets.place(self._token_bytes(token_id))
            yield Token(token_id, logprob, top_logprobs, fork_count, offset)

    def _hold(self, event: TokenEvent, token_id: int) -> None:
        self.completion_tokens += 1
        self._logprob_sum += event.logprob or 0.0
        offset = self._offsets.place(self._token_bytes(token_id))
        self._held.append(Token(token_id, event.logprob, event.top_logprobs, event.fork_count, offset))

    def _told(self, *, everything: bool) -> Sequence[Token]:
        told = [token for token in self._held if everything or token.offset < self._shown]
        self._held = self._held[len(told) :]
        return [replace(token, offset=min(token.offset, self._shown)) for token in told]
