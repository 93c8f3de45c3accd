"""The settings and where they come from: the command line before the environment before a file."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from thoughtbubbles.server.keys import ApiKeys
from thoughtbubbles.server.settings import ServerSettings
from thoughtbubbles.server.sources import PREFIX, add_arguments, read_settings

GIVEN = {
    "host": "0.0.0.0", "port": 1, "checkpoint": "here", "model_name": "m", "device": "cuda",
    "dtype": "bfloat16", "threads": 3, "max_model_len": 4, "max_batch_size": 5, "max_waiting_streams": 6,
    "max_client_share": 0.25, "max_choices": 12,
    "cache_bytes": 7, "cache_dtype": "float16", "executor": "native", "speculate": 14, "weights": "int8",
    "max_body_bytes": 8, "body_timeout_seconds": 9.5, "request_timeout_seconds": 10.5,
    "keep_alive_seconds": 0.5, "stall_seconds": 1.5, "watchdog_seconds": 11.0, "drain_seconds": 2.5,
    "max_connections": 12, "write_timeout_seconds": 13.5, "http_processes": 15,
    "load_wait_seconds": 14.5, "api_keys_file": Path("keys"), "admin_keys_file": Path("admin"),
    "cors_origins": ("https://a", "https://b"), "log_format": "json",
    "log_prompts": True, "gateway_metrics": True, "otel_endpoint": "http://c",
}  # fmt: skip
FLAGS = ("log_prompts", "gateway_metrics")
WRITTEN = {**GIVEN, "cors_origins": "https://a, https://b", **dict.fromkeys(FLAGS, "true")}


def parsed(*given: str, environment: dict[str, str] | None = None) -> ServerSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_settings(parser.parse_args(given), environment or {})


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """All settings in a file; TOML's own types."""
    file = tmp_path / "server.toml"
    told = {**WRITTEN, "cors_origins": ["https://a", "https://b"], "watchdog_seconds": 11}
    quoted = {name: f'"{value}"' if isinstance(value, str | Path) else value for name, value in told.items()}
    quoted |= dict.fromkeys(FLAGS, "true")
    file.write_text("".join(f"{name} = {value}\n" for name, value in quoted.items()))
    return file


def test_what_is_not_said_has_its_default() -> None:
    assert parsed() == ServerSettings()
    assert ServerSettings().host == "127.0.0.1", "reachable from this machine alone, unless told otherwise"
    assert ServerSettings().cors_origins == ()


def test_a_byte_order_mark_is_no_setting(toml: Path) -> None:
    toml.write_bytes(b"\xef\xbb\xbf" + toml.read_bytes())
    assert parsed("--config", str(toml)) == ServerSettings(**GIVEN)


def test_every_setting_can_be_said_everywhere(toml: Path) -> None:
    assert {*GIVEN, "api_keys", "admin_keys"} == {setting.name for setting in fields(ServerSettings)}
    line = [f"--{name.replace('_', '-')}={value}" for name, value in WRITTEN.items() if name not in FLAGS]
    assert parsed(*line, "--log-prompts", "--gateway-metrics") == ServerSettings(**GIVEN)
    variables = {PREFIX + name.upper(): str(value) for name, value in WRITTEN.items()}
    others = {"PATH": "/bin", f"{PREFIX}CONFORMANCE": "/cases"}
    assert parsed(environment={**variables, **others}) == ServerSettings(**GIVEN)
    assert parsed("--config", str(toml)) == ServerSettings(**GIVEN)
    assert parsed(environment={f"{PREFIX}CONFIG": str(toml)}) == ServerSettings(**GIVEN)


def test_a_variable_that_is_empty_lists_nothing() -> None:
    assert parsed(environment={f"{PREFIX}CORS_ORIGINS": ""}).cors_origins == ()


def test_the_command_line_outdoes_the_environment_which_outdoes_the_file(toml: Path) -> None:
    settings = parsed(
        "--config", str(toml), "--port", "11", "--no-log-prompts",
        environment={f"{PREFIX}PORT": "12", f"{PREFIX}HOST": "from.the.environment"},
    )  # fmt: skip
    assert (settings.port, settings.host, settings.model_name) == (11, "from.the.environment", "m")
    assert not settings.log_prompts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prot = 1", "unknown settings: prot"),
        ("[server]\nport = 1", "unknown settings: server"),
        ('api_keys = "a"', "unknown settings: api_keys"),
        ('port = "1"', "port in .* must be an integer, not '1'"),
        ("port = true", "port in .* must be an integer, not True"),
        ("stall_seconds = 'soon'", "stall_seconds in .* must be a number"),
        ("log_prompts = 1", "log_prompts in .* must be true or false"),
        ("cors_origins = [1]", r"cors_origins in .* must be strings, not \[1\]"),
        ("port = ", "is not TOML"),
        ("port = 70000", "port must be from 0 to 65535"),
    ],
)
def test_a_file_that_is_wrong_is_refused_by_name(text: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "server.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=reason):
        parsed("--config", str(file))


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("PROT", "1", "the environment has unknown settings: THOUGHTBUBBLES_PROT"),
        ("PORT", "x", "THOUGHTBUBBLES_PORT must be an integer, not 'x'"),
        ("LOG_PROMPTS", "1", "THOUGHTBUBBLES_LOG_PROMPTS must be true or false, not '1'"),
        ("API_KEYS", " , ", "THOUGHTBUBBLES_API_KEYS has no key"),
        ("CONFIG", "/nowhere.toml", "/nowhere.toml"),
    ],
)
def test_a_variable_that_is_wrong_is_refused_by_name(name: str, value: str, reason: str) -> None:
    with pytest.raises((ValueError, OSError), match=reason):
        parsed(environment={PREFIX + name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", -1), ("port", 65536), ("dtype", "float64"), ("log_format", "xml"), ("threads", 0),
     ("max_waiting_streams", 0), ("max_client_share", 0), ("max_client_share", 1.5), ("max_choices", 0),
     ("max_body_bytes", 0), ("max_connections", 0), ("http_processes", 0), ("http_processes", 65),
     ("write_timeout_seconds", 0), ("body_timeout_seconds", 0), ("request_timeout_seconds", -1),
     ("keep_alive_seconds", 0), ("stall_seconds", -1), ("watchdog_seconds", 0), ("drain_seconds", float("nan")),
     ("host", ""), ("host", " "), ("otel_endpoint", "notaurl"), ("otel_endpoint", ""), ("otel_endpoint", "ftp://c"),
     ("otel_endpoint", "http://"), ("otel_endpoint", "http://c:port"), ("otel_endpoint", "http://[c"),
     ("cors_origins", ("https://a", "https://b/")), ("cors_origins", ("a",))],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        ServerSettings(**{name: value})


def test_several_http_processes_are_refused_where_no_kernel_shares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert ServerSettings(http_processes=1)
    with pytest.raises(ValueError, match="http_processes must be 1 on darwin"):
        ServerSettings(http_processes=2)


def test_an_empty_host_is_refused_wherever_it_is_given() -> None:
    """A socket would take it for every address of the machine."""
    for given, environment in ((["--host", ""], {}), ([], {f"{PREFIX}HOST": ""})):
        with pytest.raises(ValueError, match=r"^host must be an address or a name, not ''"):
            parsed(*given, environment=environment)


@pytest.mark.parametrize("origins", [("*",), ("null",), ("http://[::1]:3000", "https://a.example")])
def test_origins_as_browsers_send_them(origins: tuple[str, ...]) -> None:
    assert ServerSettings(cors_origins=origins).cors_origins == origins


def test_keys_come_from_the_environment_and_are_in_no_copy_of_the_settings() -> None:
    settings = parsed(environment={f"{PREFIX}API_KEYS": "sk-one, sk-two"})
    assert settings.api_keys == ApiKeys.of(["sk-two", "sk-one"], "here")
    assert "sk-" not in repr(settings)
    with pytest.raises(SystemExit):
        parsed("--api-keys", "sk-one")


def test_help_explains_every_setting() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for setting in fields(ServerSettings):
        assert f"{PREFIX}{setting.name.upper()}" in text
        if setting.name != "api_keys":
            assert f"--{setting.name.replace('_', '-')}" in text
    assert "--port PORT port to listen on; 0 takes any free one (8000) [THOUGHTBUBBLES_PORT]" in text
