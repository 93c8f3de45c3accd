"""With `gateway_metrics` the server reports what inference gateways read, under the names of their protocol."""

from prometheus_client.parser import text_string_to_metric_families

from tests.server.harness import Serve

PROTOCOL = {
    "vllm:num_requests_waiting": "gauge",
    "vllm:num_requests_running": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prefix_cache_hits": "counter",
}
"""As the Gateway API inference extension's model server protocol and vLLM have them."""
OURS = {
    "vllm:num_requests_waiting": "thoughtbubbles_num_requests_waiting",
    "vllm:num_requests_running": "thoughtbubbles_num_requests_running",
    "vllm:kv_cache_usage_perc": "thoughtbubbles_cache_usage_ratio",
    "vllm:prefix_cache_queries": "thoughtbubbles_prefix_cache_queries",
    "vllm:prefix_cache_hits": "thoughtbubbles_prefix_cache_hits",
}


def test_they_are_off_by_default(serve: Serve) -> None:
    with serve() as server:
        assert "vllm:" not in server.client.get("/metrics").text


def test_they_have_the_names_and_types_of_the_protocol_and_our_numbers(serve: Serve) -> None:
    with serve(gateway_metrics=True) as server:
        for _ in range(2):
            server.complete(prompt="seventeen or more tokens", max_tokens=2)
        families = {each.name: each for each in text_string_to_metric_families(server.client.get("/metrics").text)}
        name = server.service.worker.model.name
    found = {name: family for name, family in families.items() if name.startswith("vllm:")}
    assert {name: family.type for name, family in found.items()} == PROTOCOL
    for family in found.values():
        (sample,), (ours, *_) = family.samples, families[OURS[family.name]].samples
        assert sample.labels == {"model_name": name}
        assert sample.value == ours.value
    assert found["vllm:prefix_cache_hits"].samples[0].value > 0
