"""OpenTelemetry traces: a span for each request that had a generation, made when the request is over."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from thoughtbubbles.engine import RequestUsage
from thoughtbubbles.model import install_command
from thoughtbubbles.server.observe.exchange import Exchange
from thoughtbubbles.server.observe.summary import summary

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

NANOSECONDS = 1_000_000_000


def exporting_to(endpoint: str) -> Callable[[Exchange], None]:
    """Return a function that exports the span of an exchange to an OTLP endpoint over HTTP.

    Raises `ValueError` if the packages of the extra `otel` are missing.
    """
    try:
        # Imported here because they are an extra.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ValueError(f"otel_endpoint needs packages: {install_command('otel')}") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "thoughtbubbles"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return spans_of(provider)


def spans_of(provider: "TracerProvider") -> Callable[[Exchange], None]:
    """Return a function that makes a span of an exchange, in the client's own trace if it sent a `traceparent`.

    Child spans are the phases of the engine request that finished last: the answer waited for it.
    """
    from opentelemetry.trace import set_span_in_context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    tracer, propagator = provider.get_tracer("thoughtbubbles"), TraceContextTextMapPropagator()

    def export(exchange: Exchange) -> None:
        if exchange.generation is None:
            return
        span = tracer.start_span(
            f"{exchange.method} {exchange.route}",
            context=propagator.extract(exchange.headers),
            start_time=exchange.began,
            attributes=summary(exchange),
        )
        parent, start = set_span_in_context(span), exchange.began
        for phase, seconds in _phases(exchange.generation.usages[-1:]):
            child = tracer.start_span(phase, context=parent, start_time=start)
            start += int(seconds * NANOSECONDS)
            child.end(start)
        span.end(exchange.began + int(exchange.seconds * NANOSECONDS))

    return export


def _phases(usages: Sequence[RequestUsage]) -> Iterator[tuple[str, float]]:
    for usage in usages:
        yield from (
            ("queue", usage.queue_seconds),
            ("prefill", usage.prefill_seconds),
            ("decode", usage.decode_seconds),
        )
