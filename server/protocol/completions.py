"""The wire form of one completion: chunks while it is generated, or all of it at the end (API.md §2 and §3)."""

import time
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

from thoughtbubbles.engine import ForkScores, RequestUsage, TokenEvent
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.protocol.choices import Choice, Delta
from thoughtbubbles.server.protocol.logprobs import logprobs_object, printed
from thoughtbubbles.server.protocol.planning import Plan
from thoughtbubbles.server.protocol.requests import Json
from thoughtbubbles.server.version import fingerprint


def rounded(scores: ForkScores) -> list[list[float]]:
    """Return a token's scores with six significant digits, for each fork layer."""
    return [[float(f"{p:.6g}") for p in streams] for streams in scores]


class Completion:
    """Turns the engine's events for one plan into the JSON that the client gets."""

    WHOLE = CHUNK = "text_completion"
    """The `object` field of a whole answer, and of a chunk."""

    def __init__(self, completion_id: str, plan: Plan, served: ServedModel) -> None:
        self.completion_id = completion_id
        """The `id` field."""
        self.plan = plan
        """What is generated."""
        self._request = plan.request
        self._token_bytes = token_bytes = served.tokenizer.token_bytes
        # Does not refer to `self`: a cycle would keep everything alive until the garbage collector runs.
        self._print = lru_cache(maxsize=4096)(lambda token_id: printed(token_bytes(token_id)))
        self._choices = [Choice(sequence.prompt, plan.request, self._token_bytes) for sequence in plan.sequences]
        self._index = {sequence.request_id: index for index, sequence in enumerate(plan.sequences)}
        self._events: list[TokenEvent] = []
        self._usages: dict[int, RequestUsage] = {}  # of finished sequences, by index
        self._head: Json = {
            "id": completion_id,
            "created": int(time.time()),
            "model": served.name,
            "system_fingerprint": fingerprint(served.weights_version),
        }

    def computed_by(self, weights_version: str) -> None:
        """Have the answer say which weights computed it, before anything of it is written."""
        self._head["system_fingerprint"] = fingerprint(weights_version)

    @property
    def long(self) -> bool:
        """Whether it returns log-probabilities or fork scores of prompts, which are many."""
        return self._request.echo and (self._request.logprobs is not None or self._request.return_fork_scores)

    def add(self, events: Sequence[TokenEvent]) -> None:
        """Keep events for `whole`."""
        self._events += events

    def whole(self) -> Json:
        """Return the whole answer, once every sequence has finished. All work is done in this call."""
        deltas = dict(self._feed(self._events))
        choices = [
            self._choice_object(rank, deltas[index], self._whole_content(deltas[index]))
            for rank, index in enumerate(self._best())
        ]
        return {**self._head, "object": self.WHOLE, "choices": choices, "usage": self._usage()}

    def chunks(self, events: Sequence[TokenEvent]) -> Iterator[Json]:
        """Yield a chunk for each choice that `events` add something to; none if its text must wait for more."""
        for index, delta in self._feed(events):
            if delta:
                choice = self._choice_object(index, delta, self._chunk_content(index, delta))
                yield {**self._head, "object": self.CHUNK, "choices": [choice], **self._usage_so_far()}

    def last_chunks(self) -> Iterator[Json]:
        """Yield the chunk with the usage, if the request includes it. Every sequence must have finished."""
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield {**self._head, "object": self.CHUNK, "choices": [], "usage": self._usage()}

    def _whole_content(self, whole: Delta) -> Json:
        """Return the text and log-probabilities of a whole choice."""
        tokens = [*whole.echoed, *whole.tokens]
        logprobs = None if self._request.logprobs is None else logprobs_object(tokens, self._print)
        return {"text": whole.text, "logprobs": logprobs}

    def _chunk_content(self, _index: int, delta: Delta) -> Json:
        """Return the text and log-probabilities that `delta` adds to the choice `_index`."""
        return self._whole_content(delta)

    def _feed(self, events: Sequence[TokenEvent]) -> Iterator[tuple[int, Delta]]:
        """Yield index and delta of each choice that has events, in order of its first event; note their usage."""
        for index, part in self._by_choice(events):
            if (usage := part[-1].usage) is not None:
                self._usages[index] = usage
            yield index, self._choices[index].feed(part)

    def _by_choice(self, events: Sequence[TokenEvent]) -> Iterable[tuple[int, Sequence[TokenEvent]]]:
        """Return the events of each choice that has some."""
        if len(self._choices) == 1:
            return [(0, events)]
        parts: dict[int, list[TokenEvent]] = {}
        for event in events:
            parts.setdefault(self._index[event.request_id], []).append(event)
        return parts.items()

    def _best(self) -> Sequence[int]:
        """Return the sequences of the answer: for each prompt those of highest mean log-probability, best first."""
        step = self._request.choices_per_prompt
        if step == self._request.n:
            return range(len(self._choices))
        return [
            index
            for start in range(0, len(self._choices), step)
            for index in sorted(range(start, start + step), key=lambda each: -self._choices[each].mean_logprob)[
                : self._request.n
            ]
        ]

    def _choice_object(self, index: int, delta: Delta, content: Json) -> Json:
        choice: Json = {
            "index": index,
            **content,
            "finish_reason": delta.finish_reason,
            "stop_reason": delta.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = [token.token_id for token in delta.tokens]
        if delta.prompt_ids is not None:
            choice["prompt_token_ids"] = delta.prompt_ids
        if self._request.return_fork_counts:
            choice["fork_counts"] = [token.fork_count for token in (*delta.echoed, *delta.tokens)]
        if self._request.return_fork_scores:
            choice["fork_scores"] = [rounded(token.fork_scores or ()) for token in (*delta.echoed, *delta.tokens)]
        return choice

    def _usage_so_far(self) -> Json:
        options = self._request.stream_options
        if options is None or not (options.include_usage or options.continuous_usage_stats):
            return {}
        return {"usage": self._usage() if options.continuous_usage_stats else None}

    def _usage(self) -> Json:
        """Return the usage object. Each prompt counts once; stream tokens are of finished sequences."""
        prompt_tokens = sum(map(len, self.plan.prompts))
        completion_tokens = sum(choice.completion_tokens for choice in self._choices)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached_tokens()},
            "stream_tokens": sum(usage.stream_tokens for usage in self._usages.values()),
        }

    def _cached_tokens(self) -> int:
        """Return how many tokens of prompts were cached before this request, of those whose choices have all finished.

        The choices of a prompt also find what the first of them computed, and that one found the least.
        """
        step, found = self._request.choices_per_prompt, self._usages
        prompts = (range(start, start + step) for start in range(0, len(self._choices), step))
        return sum(min(found[i].cached_tokens for i in each) for each in prompts if all(i in found for i in each))
