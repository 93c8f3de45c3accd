"""From a row of an output to the events of its request, and from all events of a request to its completion."""

from dataclasses import dataclass

from thoughtbubbles.engine.batch import Row
from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import FinishReason, Request, TokenEvent


@dataclass(frozen=True)
class Completion:
    """A finished request of `Engine.generate`."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None
    events: tuple[TokenEvent, ...]
    """All its events, log-probabilities included."""

    @classmethod
    def of(cls, events: list[TokenEvent]) -> "Completion":
        """Return the completion that has these events, the last included."""
        last = events[-1]
        assert last.finish_reason is not None, "the last event says why it is the last"
        ids = tuple(event.token_id for event in events if event.token_id is not None)
        return cls(ids, "".join(event.text for event in events), last.finish_reason, last.stop_reason, tuple(events))


def advance(request: Request, row: Row, now: float, end_of_text: int, events: list[TokenEvent]) -> None:
    """Apply a row to its request, whose tokens before are all computed, and append its events to `events`.

    They are those of the last token, if its event waited for its streams, and of the row's, if it has one.
    """
    _, stream_tokens, streams, _, token, logprob, prompt_report, _ = row  # at once, for every token
    request.streams = streams
    request.stream_tokens += stream_tokens
    if token is None and not request.is_computed:  # only a chunk of its prompt is
        return
    if prompt_report is not None:
        request.prompt_report = prompt_report
    if request.pending_event:
        _emit(request, _with_forks(request, request.pending_event, row), events)
        request.pending_event = None
    if token is not None:
        if request.first_token is None:
            request.first_token = now
        event = _append(request, token, logprob, end_of_text)
        if request.reports_forks:
            request.pending_event = event
        else:
            events.append(event)
    elif request.params.max_tokens == 0:
        _emit(request, TokenEvent(request.id, None, prompt=request.prompt_report, finish_reason="length"), events)


def _emit(request: Request, event: TokenEvent, events: list[TokenEvent]) -> None:
    """Append an event, with the request's usage if it is the last."""
    events.append(event if event.finish_reason is None else event._replace(usage=request.usage()))


def fail(request: Request, row: Row | None, reason: str | None) -> list[TokenEvent]:
    """Return the last events of a request that ends in an error, `reason` if that is its grammar's.

    They are that of its last token, if its event waited for its streams, and the error, with the text that is withheld.
    `row` has these streams; None if they are NaN or infinite, and then the token comes without them.
    """
    error = TokenEvent(request.id, None, request.detokenizer.flush(), finish_reason="error", stop_reason=reason)
    if (pending := request.pending_event) is None:
        return [error]
    if row is not None:
        pending = _with_forks(request, pending, row)
    return [pending._replace(finish_reason=None, stop_reason=None), error]


def _with_forks(request: Request, event: TokenEvent, row: Row) -> TokenEvent:
    """Return the event of the newest token with what the request reports of its streams, which `row` has."""
    count = row.fork_count if request.params.return_fork_counts else None
    scores = row.fork_scores[-1] if request.params.return_fork_scores else None
    return event._replace(fork_count=count, fork_scores=scores)


def _append(request: Request, token_id: int, scored: Scored | None, end_of_text: int) -> TokenEvent:
    """Append a token; return its event. `scored` is its log-probability, if requested.

    The last one has the request's usage, unless that is known only with the token's streams.
    """
    output, usage = request.output, None
    output.append(token_id)
    if token_id == end_of_text or request.may_stop or not request.draws:
        text, finish_reason, stop_reason = _read(request, token_id, end_of_text)
    else:
        text, finish_reason, stop_reason = request.detokenizer.decode(token_id), None, None
    if finish_reason is not None:
        request.finish()
        usage = None if request.reports_forks else request.usage()
    elif request.grammar is not None:
        request.grammar.accept(token_id)
    logprob, top = scored or (None, ())
    prompt = request.prompt_report if len(output) == 1 else None
    # As TokenEvent(…), in a third of the time, and one is made for every token.
    return tuple.__new__(
        TokenEvent, (request.id, token_id, text, logprob, top, None, None, prompt, finish_reason, stop_reason, usage)
    )


def _read(request: Request, token_id: int, end_of_text: int) -> tuple[str, FinishReason | None, str | int | None]:
    """Return the text that a token adds, which may be the last, and why it is, if so."""
    params, detokenizer = request.params, request.detokenizer
    if token_id == end_of_text and not params.ignore_eos:
        return detokenizer.flush(), "stop", None
    if token_id in params.stop_token_ids:
        return detokenizer.flush(), "stop", token_id
    if detokenizer.stops:
        piece = detokenizer.push(token_id, may_stop=len(request.output) >= params.min_tokens)
        if piece.stop is not None:
            return piece.text, "stop", piece.stop
        text = piece.text
    else:
        text = detokenizer.decode(token_id)
    if len(request.output) == params.max_tokens:
        return text + detokenizer.flush(), "length", None
    return text, None, None
