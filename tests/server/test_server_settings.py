"""The settings and their command line, which is one option for each."""

import argparse
from dataclasses import fields
from pathlib import Path

import pytest

from server.settings import ServerSettings, add_arguments


def parsed(*given: str) -> ServerSettings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return ServerSettings.from_arguments(parser.parse_args(given))


def test_the_defaults_are_the_same_on_the_command_line() -> None:
    assert parsed() == ServerSettings()
    assert ServerSettings().host == "127.0.0.1", "reachable from this machine alone, unless told otherwise"


def test_every_setting_has_an_option_of_its_type() -> None:
    given = {
        "host": "0.0.0.0", "port": 1, "checkpoint": Path("here"), "model_name": "m", "device": "cuda",
        "dtype": "bfloat16", "threads": 3, "max_model_len": 4, "max_batch_size": 5,
        "max_waiting_streams": 6, "cache_bytes": 7, "max_body_bytes": 8,
        "keep_alive_seconds": 0.5, "stall_seconds": 1.5, "drain_seconds": 2.5,
    }  # fmt: skip
    assert set(given) == {setting.name for setting in fields(ServerSettings)}
    line = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert parsed(*line) == ServerSettings(**given)


@pytest.mark.parametrize(
    ("name", "value"),
    [("port", -1), ("port", 65536), ("dtype", "float64"), ("threads", 0), ("max_waiting_streams", 0),
     ("max_body_bytes", 0), ("keep_alive_seconds", 0), ("stall_seconds", -1), ("drain_seconds", float("nan"))],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        ServerSettings(**{name: value})


def test_help_explains_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    text = " ".join(parser.format_help().split())
    for setting in fields(ServerSettings):
        option = f"--{setting.name.replace('_', '-')} {setting.name.upper()} "
        assert text.partition(option)[2][:1].isalpha(), setting.name
