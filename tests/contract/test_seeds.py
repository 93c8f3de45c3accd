"""The same request with the same seed gives the same tokens: alone, in a crowd, from cached prefixes, preempted."""

from concurrent.futures import ThreadPoolExecutor

import httpx

from tests.server.harness import Json, Running, Serve

CROWD = 33
LONGEST = 30
REQUESTS: list[Json] = [
    {
        "prompt": [number, *b"every one is different"[number % 20 :]],
        "max_tokens": LONGEST - number % 4,
        "seed": number,
        "temperature": 0.5 + number % 3 / 2,
        "top_p": 1 - number % 2 / 10,
        "presence_penalty": number % 5 / 5,
        "n": 1 + (number == 16),
        "fork_ratio": 1 + number % 4,
        "fork_selection": ["causal", "fixed", "causal", "dynamic"][number % 4],
        "logprobs": 0,
        "return_token_ids": True,
        "ignore_eos": True,
    }
    for number in range(CROWD)
]


def told(answer: Json) -> list[list[int]]:
    return [choice["token_ids"] for choice in answer["choices"]]


def all_at_once(server: Running) -> list[list[list[int]]]:
    """Every request by a client of its own, none of them begun before all are there."""

    def post(body: Json) -> list[list[int]]:
        return told(httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).raise_for_status().json())

    with ThreadPoolExecutor(CROWD) as pool:
        server.engine.hold()
        first = pool.submit(post, REQUESTS[0])
        server.engine.wait_until_held()
        others = [pool.submit(post, body) for body in REQUESTS[1:]]
        server.wait_until_asked(CROWD - 1)
        server.engine.let_go()
        return [each.result() for each in (first, *others)]


def test_alone_in_a_crowd_from_cached_prefixes_and_preempted(serve: Serve) -> None:
    room = {"max_batch_size": CROWD + 1, "max_waiting_streams": 10_000}
    with serve(**room) as server:
        alone = [told(server.complete(**body)) for body in REQUESTS]
        steps, hits = server.engine.steps, server.engine.stats().prefix_cache_hits_total
        assert all_at_once(server) == alone
        # Twice, and once more where requests without pages are computed in pieces, between the steps of the others.
        assert server.engine.steps - steps < 3 * LONGEST, "the crowd was not computed together"
        assert server.engine.stats().prefix_cache_hits_total > hits + CROWD, "each prompt was there before"
        assert server.engine.stats().preemptions_total == 0
    with serve(**room, cache_bytes=1 << 18) as tight:
        assert all_at_once(tight) == alone
        assert tight.engine.stats().preemptions_total > 0
