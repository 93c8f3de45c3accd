"""What one more token does to its request: the text it adds, and whether it is the last; and what all of them make."""

from dataclasses import dataclass

from thoughtbubbles.engine.prompt_report import Scored
from thoughtbubbles.engine.request import FinishReason, Request, TokenEvent
from thoughtbubbles.engine.sampling_params import SamplingParams


@dataclass(frozen=True)
class Completion:
    """A finished request of `Engine.generate`."""

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    stop_reason: str | int | None
    events: tuple[TokenEvent, ...]
    """Everything that was told of it, log-probabilities included."""

    @classmethod
    def of(cls, events: list[TokenEvent]) -> "Completion":
        """The completion that these events, its last included, tell."""
        last = events[-1]
        assert last.finish_reason is not None, "the last event says why it is the last"
        ids = tuple(event.token_id for event in events if event.token_id is not None)
        return cls(ids, "".join(event.text for event in events), last.finish_reason, last.stop_reason, tuple(events))


def advance(request: Request, token_id: int, scored: Scored | None, end_of_text: int) -> TokenEvent:
    """Append a sampled token; the event of it, without usage. `scored` is its log-probability, when asked."""
    output = request.output
    output.append(token_id)
    text, finish_reason, stop_reason = _read(request, token_id, end_of_text)
    logprob, top = scored or (None, ())
    prompt = request.prompt_report if len(output) == 1 else None
    # As TokenEvent(…), in half the time, and one is made for every token.
    return TokenEvent._make((request.id, token_id, text, logprob, top, None, prompt, finish_reason, stop_reason, None))


def banned(request: Request, end_of_text: int) -> list[int]:
    """Tokens that may not be drawn yet, because of `min_tokens`."""
    return banned_early(request.params, end_of_text) if len(request.output) < request.params.min_tokens else []


def banned_early(params: SamplingParams, end_of_text: int) -> list[int]:
    """Return the tokens that may not be drawn before `min_tokens`."""
    return [*params.stop_token_ids, *([] if params.ignore_eos else [end_of_text])]


def _read(request: Request, token_id: int, end_of_text: int) -> tuple[str, FinishReason | None, str | int | None]:
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
