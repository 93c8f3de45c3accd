"""The histograms of API.md §7: names, units and buckets."""

from prometheus_client import CollectorRegistry, Histogram

from thoughtbubbles.engine import RequestUsage
from thoughtbubbles.server.observe.batched_histogram import BatchedHistogram

PREFIX = "thoughtbubbles_"
# A small model takes a step in half a millisecond; a long request may take a minute.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKENS = tuple(float(1 << power) for power in range(16))
STREAMS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0, 64.0)
BATCH = tuple(float(1 << power) for power in range(9))
RATIO = tuple(tenth / 10 for tenth in range(1, 11))


class Histograms:
    """All histograms of one server's registry. One thread observes them: the one that gets the reports."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def seconds(name: str, help_text: str) -> BatchedHistogram:
            return BatchedHistogram(f"{PREFIX}{name}_seconds", help_text, SECONDS, registry)

        def count(name: str, help_text: str, buckets: tuple[float, ...]) -> BatchedHistogram:
            return BatchedHistogram(f"{PREFIX}{name}", help_text, buckets, registry)

        self.time_to_first_token = seconds("time_to_first_token", "Time from a request's arrival to its first token.")
        self.inter_token_latency = seconds("inter_token_latency", "Time between two tokens of a request.")
        self.e2e_request_latency = seconds("e2e_request_latency", "Time from a request's arrival to its last token.")
        self.step_duration = Histogram(
            f"{PREFIX}step_duration_seconds", "Time of one engine step.", ["phase"], registry=registry, buckets=SECONDS
        )
        self.step_batch_size = count("step_batch_size", "Requests in one step.", BATCH)
        self.streams_per_token = count("streams_per_token", "Streams of a token after the last fork layer.", STREAMS)
        self._queue_time = seconds("request_queue_time", "Time that a request waited for its first step.")
        self._prefill_time = seconds("request_prefill_time", "Time of a request's prefill.")
        self._decode_time = seconds("request_decode_time", "Time of a request's decode.")
        self._prompt_tokens = count("request_prompt_tokens", "Tokens of a request's prompt.", TOKENS)
        self._generation_tokens = count("request_generation_tokens", "Tokens a request generated.", TOKENS)
        self._fork_count = count(
            "request_fork_count", "Streams of a request's computed tokens beyond one a token.", TOKENS
        )
        self._budget_used = count(
            "fork_budget_used_ratio", "Streams of a request's computed tokens over their fork budget.", RATIO
        )

    def observe_usage(self, usage: RequestUsage) -> None:
        """Observe the usage of one finished request."""
        self._queue_time.observe(usage.queue_seconds)
        self._prefill_time.observe(usage.prefill_seconds)
        self._decode_time.observe(usage.decode_seconds)
        self._prompt_tokens.observe(usage.prompt_tokens)
        self._generation_tokens.observe(usage.completion_tokens)
        self._fork_count.observe(usage.fork_count)
        self._budget_used.observe(usage.budget_used_ratio)
