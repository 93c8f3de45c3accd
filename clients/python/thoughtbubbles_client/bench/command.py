"""The command: its arguments and output."""

import argparse
import asyncio
import json
import random
from dataclasses import asdict
from pathlib import Path

import httpx

from thoughtbubbles_client.async_client import AsyncClient
from thoughtbubbles_client.bench.load import put_load
from thoughtbubbles_client.bench.plan import Plan
from thoughtbubbles_client.bench.report import Report
from thoughtbubbles_client.errors import ThoughtbubblesError
from thoughtbubbles_client.retry import RetryPolicy
from thoughtbubbles_client.transport import DEFAULT_URL


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to `parser`; most are fields of `Plan`."""
    plan = Plan()
    parser.add_argument("url", metavar="URL", nargs="?", default=DEFAULT_URL, help="the server's address (%(default)s)")
    parser.add_argument("--concurrency", type=int, default=plan.concurrency, help="concurrent requests (%(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--requests", type=int, help=f"number of requests ({plan.requests})")
    length.add_argument("--seconds", type=float, help="send new requests for this long instead")
    parser.add_argument(
        "--prompt-tokens", type=int, default=plan.prompt_tokens, help="tokens of each prompt (%(default)s)"
    )
    parser.add_argument(
        "--completion-tokens", type=int, default=plan.completion_tokens, help="tokens of each completion (%(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=plan.temperature, help="0 is greedy (%(default)s)")
    parser.add_argument("--fork-ratio", type=float, help="streams per token that the budget allows (the checkpoint's)")
    parser.add_argument("--model", help="the model's name (the served one)")
    parser.add_argument(
        "--openai-only", action="store_true",
        help="use only OpenAI's API: --prompt-tokens counts words, and completions may be shorter",
    )  # fmt: skip
    parser.add_argument(
        "--seed",
        type=int,
        help="seed of prompts and samples; a server may have cached prompts of the same seed (random)",
    )
    parser.add_argument("--api-key-file", type=Path, help="file whose first line is the API key (none)")
    parser.add_argument("--timeout", type=float, default=60.0, help="longest wait for a byte, in seconds (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object; times in seconds")


def run(args: argparse.Namespace) -> int:
    """Measure and print. Return 0 if requests were answered, 1 if none was.

    Raises `ValueError` or `OSError` if nothing can be measured.
    """
    plan = _plan(args)
    try:
        report = asyncio.run(_measure(_client(args), plan))
    except ThoughtbubblesError as error:
        raise OSError(f"{args.url} cannot be measured: {error}") from error
    print(_json(args.url, plan, report) if args.json else _text(args.url, plan, report))
    return 0 if report.answered else 1


async def _measure(client: AsyncClient, plan: Plan) -> Report:
    async with client:
        return await put_load(client, plan)


def _client(args: argparse.Namespace) -> AsyncClient:
    file: Path | None = args.api_key_file
    return AsyncClient(
        args.url,
        api_key=None if file is None else file.read_text(encoding="utf-8-sig").partition("\n")[0],
        timeout=args.timeout,
        retry=RetryPolicy(retries=0),  # failures are counted
        fork_counts=False,  # else each token waits until the next one is computed
        transport=httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=None)),
    )


def _plan(args: argparse.Namespace) -> Plan:
    endless = args.seconds is not None
    return Plan(
        concurrency=args.concurrency,
        requests=None if endless else Plan.requests if args.requests is None else args.requests,
        seconds=args.seconds,
        prompt_tokens=args.prompt_tokens,
        completion_tokens=args.completion_tokens,
        temperature=args.temperature,
        fork_ratio=args.fork_ratio,
        model=args.model,
        openai_only=args.openai_only,
        seed=random.randrange(1 << 31) if args.seed is None else args.seed,
    )


def _json(url: str, plan: Plan, report: Report) -> str:
    return json.dumps({"url": url, "plan": asdict(plan), **report.as_json()})


def _text(url: str, plan: Plan, report: Report) -> str:
    unit = "words" if plan.openai_only else "tokens"
    lengths = f"prompts of {plan.prompt_tokens} {unit}, completions of {plan.completion_tokens} tokens"
    return f"{url}: {plan.concurrency} requests at once, {lengths}\n{report.as_text()}"
