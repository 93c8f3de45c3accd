"""Everything an operator can set, in one frozen object; `server.sources` says where its values come from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import SplitResult, urlsplit

from thoughtbubbles.server.keys import NO_KEYS, ApiKeys

POSITIVE = (
    "threads",
    "max_waiting_streams",
    "max_choices",
    "max_body_bytes",
    "max_connections",
    "body_timeout_seconds",
    "write_timeout_seconds",
    "request_timeout_seconds",
    "keep_alive_seconds",
    "stall_seconds",
    "watchdog_seconds",
    "drain_seconds",
)
CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "cache_dtype": ("float32", "float16"),
    "executor": ("auto", "native", "portable"),
    "log_format": ("text", "json"),
}
MAX_BATCH_SIZE = 4096


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What `thoughtbubbles serve` runs with; each setting's prose is its `--help`.

    Raises `ValueError` naming the setting that cannot be.
    """

    host: Annotated[str, "address to listen on; the default can be reached from this machine alone"] = "127.0.0.1"
    port: Annotated[int, "port to listen on; 0 takes any free one"] = 8000
    checkpoint: Annotated[Path | None, "checkpoint folder (the one in checkpoints/)"] = None
    model_name: Annotated[str | None, "name the model is served under (the checkpoint folder's)"] = None
    device: Annotated[str, "torch device the model runs on, such as cpu or cuda"] = "cpu"
    dtype: Annotated[str, "precision of weights and activations: float32 or bfloat16"] = "float32"
    threads: Annotated[int | None, "CPU threads that torch computes with (one fewer than torch would)"] = None
    max_model_len: Annotated[int | None, "most tokens of prompt and completion (those of a training block)"] = None
    max_batch_size: Annotated[int, "most requests computed in one step, up to 4096"] = 32
    max_waiting_streams: Annotated[int, "most streams that prompts waiting for a place may need; more are refused"] = (
        1 << 18
    )
    max_client_share: Annotated[
        float,
        "share of max_waiting_streams that one client's waiting requests may need when complete, prompt and completion;"
        " a client is an API key, without keys an address; 1: no limit",
    ] = 0.5
    max_choices: Annotated[int, "most choices of one request: its prompts times n or best_of"] = 1024
    cache_bytes: Annotated[int, "memory of the fork-state cache, and as much again for dynamic and fixed"] = 1 << 30
    cache_dtype: Annotated[
        str | None,
        "type of the keys and values in the cache, float32 or float16, which takes half the memory (that of dtype)",
    ] = None
    executor: Annotated[
        str,
        "what computes on a CPU: native, portable (torch's operators), or auto: native where it can be built",
    ] = "auto"
    max_body_bytes: Annotated[int, "longest request body that is read"] = 8 << 20
    max_connections: Annotated[int, "most open connections; on more only /health, /ready and /metrics are answered"] = (
        1000
    )
    body_timeout_seconds: Annotated[float, "a request's head must arrive within this time, and so must its body"] = 30.0
    write_timeout_seconds: Annotated[float, "a client that reads nothing of an answer for this time is cut off"] = 30.0
    request_timeout_seconds: Annotated[float, "a request that takes longer ends with an error; inf: none does"] = 600.0
    keep_alive_seconds: Annotated[float, "a silent stream sends a comment this often"] = 15.0
    stall_seconds: Annotated[float, "a step longer than this makes /ready fail"] = 60.0
    watchdog_seconds: Annotated[float, "a step longer than this ends the server with an error; inf: none does"] = 300.0
    drain_seconds: Annotated[float, "on SIGTERM, how long running requests may take to finish"] = 30.0
    api_keys_file: Annotated[
        Path | None,
        "file of API keys, one a line, # begins a comment (no key is needed); more come from the variable"
        " THOUGHTBUBBLES_API_KEYS alone, with commas between them. With keys every route needs one but /,"
        " /playground/*, /health, /ready, /version, /metrics and /openapi.json",
    ] = None
    cors_origins: Annotated[
        tuple[str, ...], "origins whose pages may read answers, with commas between them, or * (none)"
    ] = ()
    log_format: Annotated[str, "how a log line is written: text or json"] = "text"
    log_prompts: Annotated[bool, "write prompts to the log"] = False
    otel_endpoint: Annotated[
        str | None, "URL of an OpenTelemetry collector that gets traces over HTTP (none); needs the otel extra"
    ] = None
    api_keys: Annotated[ApiKeys, "keys from the environment: on a command line others see them"] = NO_KEYS

    def __post_init__(self) -> None:
        self._check_addresses()
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be from 0 to 65535, not {self.port}")
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
        if not self.host.strip():  # a socket would listen on every address
            raise ValueError(f"host must be an address or a name, not {self.host!r}; 0.0.0.0 is every address")
        if self.otel_endpoint is not None and _web_address(self.otel_endpoint) is None:
            example = "http://127.0.0.1:4318/v1/traces"
            raise ValueError(f"otel_endpoint must be a URL such as {example}, not {self.otel_endpoint!r}")
        for origin in self.cors_origins:
            if origin not in {"*", "null"} and not _is_origin(origin):
                raise ValueError(f"cors_origins must be origins such as https://a.example, not {origin!r}")


def _web_address(text: str) -> SplitResult | None:
    """Return the parts of an http or https URL, None if it is none."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number, an address that is none
        return None
    return parts if usable else None


def _is_origin(text: str) -> bool:
    """Return whether a browser may send this as its Origin: scheme, host and port, and nothing after them."""
    parts = _web_address(text)
    return parts is not None and text == f"{parts.scheme}://{parts.netloc}"
