"""A second server, which speaks OpenAI's part alone: no forks, no token ids, no cancel, no tokenizer."""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from tests.clients.harness import Json
from tests.server.harness import eventually
from thoughtbubbles.server.sockets import listen

WORDS = ("one", " two", " three")
"""What it always says."""
KNOWN = {
    "model",
    "prompt",
    "messages",
    "max_tokens",
    "temperature",
    "seed",
    "n",
    "logprobs",
    "stream",
    "stream_options",
}
"""Fields it takes; another is refused, as OpenAI does."""
USAGE = {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
HEAD = {"id": "cmpl-9", "created": 9, "model": "parrot"}


def make_app(*, strict: bool) -> FastAPI:
    """The server; one that is not `strict` overlooks fields that it does not know, as many do."""
    app = FastAPI()

    @app.get("/v1/models")
    def models() -> Json:
        return {"object": "list", "data": [{"id": "parrot", "object": "model", "created": 9, "owned_by": "someone"}]}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = await request.json()
        return _refusal(body, strict) or _answer(
            body, lambda text, _: {"text": text, "logprobs": _logprobs(body, text)}
        )

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        return _refusal(body, strict) or _answer(body, lambda text, key: {key: {"role": "assistant", "content": text}})

    return app


def _refusal(body: Json, strict: bool) -> Response | None:
    unknown = sorted(body.keys() - KNOWN) if strict else []
    if body.get("model") == "parrot" and not unknown:
        return None
    problem = (
        f"Unrecognized request argument supplied: {unknown[0]}" if unknown else "you must provide a model parameter"
    )
    error = {"message": problem, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, 400)


def _answer(body: Json, content: Callable[[str, str], Json]) -> Response:
    """`content` says how a text is worded, which in a chat depends on where it stands."""

    def told(text: str, key: str, **more: object) -> Json:
        return {**HEAD, "choices": [{"index": 0, "finish_reason": None, **content(text, key), **more}]}

    if not body.get("stream"):
        return JSONResponse({**told("".join(WORDS), "message", finish_reason="stop"), "usage": USAGE})

    async def events() -> AsyncIterator[str]:
        for word in WORDS:
            yield f"data: {json.dumps(told(word, 'delta'))}\r\n\r\n"
        yield f"data: {json.dumps(told('', 'delta', finish_reason='stop'))}\r\n\r\n"
        if (body.get("stream_options") or {}).get("include_usage"):
            yield f"data: {json.dumps({**HEAD, 'choices': [], 'usage': USAGE})}\r\n\r\n"
        yield "data: [DONE]\r\n\r\n"

    return StreamingResponse(events(), media_type="text/event-stream")


def _logprobs(body: Json, text: str) -> Json | None:
    if body.get("logprobs") is None or not text:
        return None
    return {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": None, "text_offset": [0]}


@contextlib.contextmanager
def openai_server(*, strict: bool) -> Iterator[str]:
    """Its address, as long as it runs."""
    listener = listen("127.0.0.1", 0)
    running = uvicorn.Server(uvicorn.Config(make_app(strict=strict), log_config=None))
    thread = threading.Thread(target=lambda: asyncio.run(running.serve(sockets=[listener])))
    thread.start()
    try:
        eventually(lambda: running.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(30)
