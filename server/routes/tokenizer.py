"""Tokenize and detokenize over HTTP, so that clients need no copy of the vocabulary (API.md §5)."""

from collections.abc import Sequence

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.http.offload import TOKENS, offload
from thoughtbubbles.server.protocol.requests import DetokenizeRequest, Json, TokenizeRequest
from thoughtbubbles.server.protocol.validation import parse
from thoughtbubbles.server.protocol.vocabulary import check_ids, encode
from thoughtbubbles.server.routes.openapi import refusals, takes
from thoughtbubbles.server.service import Serving

router = APIRouter(responses=refusals(401, 500))


@router.post(
    "/tokenize", response_model=Json, responses=refusals(400, 408, 413, 415, 503), openapi_extra=takes(TokenizeRequest)
)
async def tokenize(request: Request, service: Serving) -> Response:
    """Return the token ids of a text."""
    served = service.worker.model
    body = await request.body()
    return _answer(await offload(lambda: _tokenized(body, served), len(body), TOKENS))


@router.post(
    "/detokenize",
    response_model=Json,
    responses=refusals(400, 408, 413, 415, 503),
    openapi_extra=takes(DetokenizeRequest),
)
async def detokenize(request: Request, service: Serving) -> Response:
    """Return the text of token ids."""
    tokenizer = service.worker.model.tokenizer
    body = await request.body()
    return _answer(await offload(lambda: to_json({"prompt": _text(body, tokenizer)}), len(body), TOKENS))


@router.get("/tokenizer_info", responses=refusals(503))
async def tokenizer_info(service: Serving) -> Json:
    """Return the names of the special tokens, which lm-eval reads."""
    served = service.worker.model
    tokenizer = served.tokenizer
    return {
        "eos_token": _end_of_text(tokenizer),
        "bos_token": None,
        "pad_token": None,
        "eos_token_id": tokenizer.end_of_text,
        "vocab_size": tokenizer.vocab_size,
        "chat_template": None if served.chat_template is None else served.chat_template.source,
    }


def _answer(body: bytes) -> Response:
    """Return the answer with this JSON, which is written off the event loop: that takes as long as tokenizing."""
    return Response(body, media_type="application/json")


def _tokenized(body: bytes, served: ServedModel) -> bytes:
    tokens = _tokens(body, served.tokenizer)
    return to_json({"tokens": tokens, "count": len(tokens), "max_model_len": served.max_model_len})


def _tokens(body: bytes, tokenizer: Tokenizer) -> Sequence[int]:
    text = parse(body, TokenizeRequest).prompt
    # Alone, the special token's name is the token: lm-eval gets its id so. Within a text it is text.
    return [tokenizer.end_of_text] if text == _end_of_text(tokenizer) else encode("prompt", text, tokenizer)


def _text(body: bytes, tokenizer: Tokenizer) -> str:
    tokens = parse(body, DetokenizeRequest).tokens
    check_ids("tokens", tokens, tokenizer)
    return tokenizer.decode(tokens)


def _end_of_text(tokenizer: Tokenizer) -> str:
    return tokenizer.decode([tokenizer.end_of_text])
