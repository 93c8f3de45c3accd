"""Run the requests of a batch on an engine, as many at a time as fill its steps."""

import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from thoughtbubbles.engine import Engine, InvalidRequest, QueueFull, TokenEvent
from thoughtbubbles.server.batch.input_file import Line
from thoughtbubbles.server.bridge.errors import RefusedError, failure_of
from thoughtbubbles.server.bridge.trimming import Trimmer
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.protocol.chat import ChatCompletion
from thoughtbubbles.server.protocol.chat_planning import plan_chat
from thoughtbubbles.server.protocol.chat_requests import ChatRequest
from thoughtbubbles.server.protocol.completions import Completion
from thoughtbubbles.server.protocol.errors import ApiError, bad_request, internal_error
from thoughtbubbles.server.protocol.handlers import api_error
from thoughtbubbles.server.protocol.planning import plan
from thoughtbubbles.server.protocol.requests import CompletionRequest, GenerationRequest, Json
from thoughtbubbles.server.protocol.unsupported import ignored
from thoughtbubbles.server.protocol.validation import validate

logger = logging.getLogger(__name__)

Body = TypeVar("Body", bound=GenerationRequest)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to a line, as over HTTP."""

    line: Line
    """The line."""
    status: int
    """The HTTP status."""
    body: Json
    """The completion, or the error."""
    ignored: Sequence[str] = ()
    """Fields of the request that have no effect."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Job:
    """A line whose request is valid, while the engine has it."""

    line: Line
    completion: Completion
    ignored: Sequence[str]
    unfinished: set[str]
    """The ids of engine requests without a last event."""


class Runner:
    """Answers lines with an engine, which nothing else may use."""

    def __init__(self, engine: Engine, served: ServedModel) -> None:
        self._engine = engine
        self._served = served
        self._jobs: dict[str, _Job] = {}  # by id of each unfinished engine request
        self._full: _Job | None = None  # the engine's queue had no space for it
        self._most_requests = 2 * engine.config.max_batch_size  # a step that finishes all finds the next batch waiting
        self._trimmer = Trimmer()

    def answers(self, lines: Iterator[Line]) -> Iterator[Answer]:
        """Yield the answer to each line, in the order that they finish. Reads few lines ahead."""
        while True:
            yield from self._add_lines(lines)
            if not self._engine.has_work:
                assert self._full is None, "an empty queue has space for every request that passed its checks"
                return
            for event in self._engine.step():
                yield from self._receive(event)
            self._trimmer.trim()

    def _add_lines(self, lines: Iterator[Line]) -> Iterator[Answer]:
        """Add lines to the engine until it has enough, and yield the errors of those that are refused."""
        while len(self._jobs) < self._most_requests:
            line = next(lines, None) if self._full is None else self._full.line
            if line is None:
                return
            try:
                job, self._full = self._full or self._job(line), None
                self._add(job)
            except ApiError as error:
                yield Answer(line=line, status=error.status, body=error.body)
            except QueueFull:
                self._full = job
                return

    def _job(self, line: Line) -> _Job:
        """Return the job of a line. Raises `ApiError`, 500 for an unexpected exception: other lines go on."""
        try:
            request, completion = _planned(line, self._served)
        except ApiError:
            raise
        except Exception as error:
            logger.exception("line %d cannot be planned", line.number)
            raise internal_error() from error
        ids = {sequence.request_id for sequence in completion.plan.sequences}
        return _Job(line=line, completion=completion, ignored=list(ignored(request)), unfinished=ids)

    def _add(self, job: _Job) -> None:
        """Add all engine requests of a job, or none. Raises `QueueFull`, or `ApiError` if the engine refuses one."""
        sequences = job.completion.plan.sequences
        try:
            for sequence in sequences:
                self._engine.add(sequence.request_id, sequence.prompt, sequence.params)
        except (InvalidRequest, QueueFull) as refusal:
            self._engine.abort(*(sequence.request_id for sequence in sequences))
            if isinstance(refusal, QueueFull):
                raise
            raise api_error(RefusedError(refusal, retry_seconds=0)) from None
        self._jobs |= dict.fromkeys(job.unfinished, job)

    def _receive(self, event: TokenEvent) -> Iterator[Answer]:
        """Add an event to its job, and yield the job's answer if that is complete."""
        job = self._jobs.get(event.request_id)
        if job is None:  # another request of its job failed
            return
        if event.finish_reason == "error":
            self._engine.abort(*job.unfinished)
            for request_id in job.unfinished:
                del self._jobs[request_id]
            error = api_error(failure_of(event))
            yield Answer(line=job.line, status=error.status, body=error.body)
            return
        job.completion.add([event])
        if event.finish_reason is not None:
            del self._jobs[event.request_id]
            job.unfinished.remove(event.request_id)
            if not job.unfinished:
                yield Answer(line=job.line, status=200, body=job.completion.whole(), ignored=job.ignored)


def _planned(line: Line, served: ServedModel) -> tuple[GenerationRequest, Completion]:
    """Return the request of a line and its completion, checked as the routes check it."""
    if line.url == "/v1/chat/completions":
        chat = _parsed(line.body, ChatRequest)
        chat_id = f"chatcmpl-{uuid.uuid4().hex}"
        return chat, ChatCompletion(chat_id, plan_chat(chat_id, chat, served), served)
    request = _parsed(line.body, CompletionRequest)
    completion_id = f"cmpl-{uuid.uuid4().hex}"
    return request, Completion(completion_id, plan(completion_id, request, served), served)


def _parsed(body: Json, schema: type[Body]) -> Body:
    request = validate(body, schema)
    if request.stream:
        message = "Unsupported parameter: 'stream' is not supported in a batch, whose answers are whole."
        raise bad_request(message, "unsupported_parameter", "stream")
    return request
