"""Everything that an operator can set, in one frozen object; `server.sources` reads the values."""

import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from pydantic import ConfigDict, TypeAdapter

from thoughtbubbles.server.keys import NO_KEYS, ApiKeys

POSITIVE = (
    "threads", "max_waiting_streams", "max_choices", "max_body_bytes", "max_connections",
    "body_timeout_seconds", "write_timeout_seconds", "request_timeout_seconds", "keep_alive_seconds", "stall_seconds",
    "watchdog_seconds", "drain_seconds", "load_wait_seconds",
)  # fmt: skip
CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "cache_dtype": ("float32", "float16", "float8"),
    "executor": ("auto", "native", "portable"),
    "weights": ("exact", "int8"),
    "log_format": ("text", "json"),
}
MAX_BATCH_SIZE = 4096
MAX_HTTP_PROCESSES = 64


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What `thoughtbubbles serve` runs with. The text under each setting is its `--help`.

    Raises `ValueError` that names the wrong setting.
    """

    __pydantic_config__ = ConfigDict(use_attribute_docstrings=True)  # `help_texts` reads them

    host: str = "127.0.0.1"
    """address to listen on; the default accepts connections of this machine only"""
    port: int = 8000
    """port to listen on; 0 takes any free one"""
    http_processes: int = 1
    """processes that speak HTTP: several share the connections, where one event loop cannot keep up with the engine;
    above 1 on Linux only, and up to 64"""
    checkpoint: str | Path | None = None
    """checkpoint folder, or a hub id: org/name[@revision] (the one in checkpoints/)"""
    model_name: str | None = None
    """name of the model for clients (the checkpoint folder's, or org/name)"""
    device: str = "cpu"
    """torch device of the model, such as cpu or cuda"""
    dtype: str = "float32"
    """precision of weights and activations: float32 or bfloat16"""
    threads: int | None = None
    """CPU threads of torch (one fewer than torch's default)"""
    max_model_len: int | None = None
    """most tokens of prompt and completion together (those of a training block)"""
    max_batch_size: int = 64
    """most requests computed in one step, up to 4096"""
    max_waiting_streams: int = 1 << 18
    """most streams that the prompts of waiting requests may need; further requests are refused"""
    max_client_share: float = 0.5
    """share of max_waiting_streams that one client's waiting requests may need when complete, prompt and completion; a
    client is an API key, or without keys an address; 1: no limit"""
    max_choices: int = 1024
    """most choices of one request: its prompts times n or best_of"""
    cache_bytes: int = 1 << 30
    """memory of the fork-state cache, and as much again for requests without pages: under dynamic and fixed, with
    `fork_bias` or `return_fork_scores`"""
    cache_dtype: str | None = None
    """type of keys and values in the cache (that of dtype): float16 on a CPU, or float8 on a GPU, takes half the
    memory"""
    executor: str = "auto"
    """what computes on a CPU: native, portable (torch's operators), or auto: native if it can be built"""
    speculate: int = 0
    """most tokens to guess for a request in a step, from what followed its last tokens earlier in its text;
    answers stay the same; 0: off"""
    weights: str = "exact"
    """weights of the layers: exact, or rounded to int8, for which the native executor must serve"""
    max_body_bytes: int = 8 << 20
    """most bytes of a request body"""
    max_connections: int = 1000
    """most open connections; above it only /health, /ready and /metrics are answered"""
    body_timeout_seconds: float = 30.0
    """time limit for a request's head to arrive, and for its body"""
    write_timeout_seconds: float = 30.0
    """a client that reads nothing of an answer for this time is disconnected"""
    request_timeout_seconds: float = 600.0
    """a request that takes longer ends with an error; inf: no limit"""
    keep_alive_seconds: float = 15.0
    """time without events after which a stream sends a comment"""
    stall_seconds: float = 60.0
    """a step longer than this makes /ready fail"""
    watchdog_seconds: float = 300.0
    """a step longer than this ends the server with an error; inf: no limit"""
    drain_seconds: float = 30.0
    """time that running requests have to finish after SIGTERM"""
    load_wait_seconds: float = 300.0
    """time that running requests have to finish before POST /admin/load replaces the weights, while new ones wait; then
    the load ends with an error; inf: no limit"""
    api_keys_file: Path | None = None
    """file of API keys, one a line, # starts a comment (no key is needed); the variable THOUGHTBUBBLES_API_KEYS may
    have more, separated by commas. With keys every route needs one but /, /playground/*, /health, /ready, /version,
    /metrics and /openapi.json"""
    admin_keys_file: Path | None = None
    """file of keys for POST /admin/load, which needs one of these and no API key, in the same form (the route is off);
    the variable THOUGHTBUBBLES_ADMIN_KEYS may have more"""
    cors_origins: tuple[str, ...] = ()
    """origins whose pages may read answers, separated by commas, or * (none)"""
    log_format: str = "text"
    """format of log lines: text or json"""
    log_prompts: bool = False
    """write prompts to the log"""
    gateway_metrics: bool = False
    """report queue, cache use and prefix hits under vLLM's metric names too, which inference gateways read"""
    otel_endpoint: str | None = None
    """URL of an OpenTelemetry collector that receives traces over HTTP (none); needs the otel extra"""
    api_keys: ApiKeys = NO_KEYS
    """keys from the environment: other users of the machine can see a command line"""
    admin_keys: ApiKeys = NO_KEYS
    """the same for POST /admin/load"""

    def __post_init__(self) -> None:
        self._check_addresses()
        if not 1 <= self.max_batch_size <= MAX_BATCH_SIZE:
            raise ValueError(f"max_batch_size must be from 1 to {MAX_BATCH_SIZE}, not {self.max_batch_size}")
        if not 0 < self.max_client_share <= 1:
            raise ValueError(f"max_client_share must be above 0, at most 1, not {self.max_client_share}")
        for name, choices in CHOICES.items():
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise ValueError(f"{name} must be {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}")
        for name in POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}")

    def _check_addresses(self) -> None:
        if not self.host.strip():  # a socket would listen on all addresses
            raise ValueError(f"host must be an address or a name, not {self.host!r}; 0.0.0.0 is every address")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {self.port}")
        if not 1 <= self.http_processes <= MAX_HTTP_PROCESSES:
            raise ValueError(f"http_processes must be from 1 to {MAX_HTTP_PROCESSES}, not {self.http_processes}")
        if self.http_processes > 1 and sys.platform != "linux":
            raise ValueError(f"http_processes must be 1 on {sys.platform}, which does not share out connections")
        if self.otel_endpoint is not None and _web_address(self.otel_endpoint) is None:
            example = "http://127.0.0.1:4318/v1/traces"
            raise ValueError(f"otel_endpoint must be a URL such as {example}, not {self.otel_endpoint!r}")
        for origin in self.cors_origins:
            if origin not in {"*", "null"} and not _is_origin(origin):
                raise ValueError(f"cors_origins must be origins such as https://a.example, not {origin!r}")


def _web_address(text: str) -> SplitResult | None:
    """Return the parts of an http or https URL; None if `text` is not one."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # the port is not a number, or the IPv6 address is not valid
        return None
    return parts if usable else None


def _is_origin(text: str) -> bool:
    """Return whether a browser may send this as its Origin: scheme, host and port, and nothing else."""
    parts = _web_address(text)
    return parts is not None and text == f"{parts.scheme}://{parts.netloc}"


def help_texts() -> dict[str, str]:
    """Return the text under each setting, on one line."""
    properties = TypeAdapter(ServerSettings).json_schema()["properties"]
    return {name: " ".join(schema["description"].split()) for name, schema in properties.items()}
