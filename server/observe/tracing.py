"""OpenTelemetry traces: a span for each request that asked the engine for something, made when it is over."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from thoughtbubbles.engine import RequestUsage
from thoughtbubbles.server.observe.exchange import Exchange
from thoughtbubbles.server.observe.summary import facts

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

NANOSECONDS = 1_000_000_000


def exporting_to(endpoint: str) -> Callable[[Exchange], None]:
    """Sends spans to a collector's OTLP endpoint over HTTP. `ValueError` where the packages for it are missing."""
    try:
        # Here, for they are an extra.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("otel_endpoint needs the packages of the extra: pip install 'thoughtbubbles[otel]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "thoughtbubbles"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return spans_of(provider)


def spans_of(provider: "TracerProvider") -> Callable[[Exchange], None]:
    """Makes a span of an exchange, part of the client's own trace where it sent a `traceparent`.

    Its children tell the phases of the request's sequence that ended last, which the answer waited for.
    """
    from opentelemetry.trace import set_span_in_context  # noqa: PLC0415
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator  # noqa: PLC0415

    tracer, propagator = provider.get_tracer("thoughtbubbles"), TraceContextTextMapPropagator()

    def tell(exchange: Exchange) -> None:
        if exchange.generation is None:
            return
        span = tracer.start_span(
            f"{exchange.method} {exchange.route}",
            context=propagator.extract(exchange.headers),
            start_time=exchange.began,
            attributes=facts(exchange),
        )
        within, at = set_span_in_context(span), exchange.began
        for phase, seconds in _phases(exchange.generation.usages[-1:]):
            child = tracer.start_span(phase, context=within, start_time=at)
            at += int(seconds * NANOSECONDS)
            child.end(at)
        span.end(exchange.began + int(exchange.seconds * NANOSECONDS))

    return tell


def _phases(usages: Sequence[RequestUsage]) -> Iterator[tuple[str, float]]:
    for usage in usages:
        yield from (
            ("queue", usage.queue_seconds),
            ("prefill", usage.prefill_seconds),
            ("decode", usage.decode_seconds),
        )
