"""Read the settings from the command line, the environment and a TOML file, in this order of precedence.

Not with pydantic-settings: it ignores unknown variables, and merges the sources before it checks types, so that errors
could not name the variable or the file.
"""

import argparse
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from thoughtbubbles.server.keys import EMPTY, ApiKeys
from thoughtbubbles.server.reading import read_settings_file
from thoughtbubbles.server.settings import ServerSettings, help_texts

PREFIX = "THOUGHTBUBBLES_"
CONFIG = PREFIX + "CONFIG"
TESTS_ONLY = PREFIX + "CONFORMANCE"
"""A variable of the tests, which may be set while they start a server."""


@dataclass(frozen=True)
class Kind:
    """How values of one type are written."""

    words: str
    """What a message calls a value of this type."""
    from_text: Callable[[str], Any]
    """Converts an argument or a variable; raises `ValueError`."""
    in_toml: tuple[type, ...] = ()
    """The types of a value in TOML; none if a file or command line must not have it."""
    from_toml: Callable[[Any], Any] = lambda value: value
    """Converts a value of one of these types; raises `ValueError`."""


def _boolean(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError
    return text.lower() == "true"


def _separated(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _strings(values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise ValueError
    return tuple(values)


def _keys(text: str) -> ApiKeys:
    return ApiKeys.of(_separated(text), "")


KINDS: Mapping[Any, Kind] = {
    str: Kind("a string", str, (str,)),
    int: Kind("an integer", int, (int,)),
    float: Kind("a number", float, (float, int), float),
    bool: Kind("true or false", _boolean, (bool,)),
    Path: Kind("a path", Path, (str,), Path),
    tuple[str, ...]: Kind("strings", _separated, (list,), _strings),
    ApiKeys: Kind("keys", _keys),
}


def add_arguments(parser: argparse.ArgumentParser, only: Collection[str] | None = None) -> None:
    """Add an option for each setting except the keys, or for those in `only`; its help names the setting's variable."""
    parser.allow_abbrev = False  # --api-keys KEY would mean --api-keys-file, and the error would show the key
    # Without a type, which argparse would apply to SUPPRESS; `read_settings` converts it.
    either = parser.add_mutually_exclusive_group()
    either.add_argument("checkpoint", nargs="?", default=argparse.SUPPRESS, help="as --checkpoint")
    parser.add_argument(
        "--config", type=Path, help=f"TOML file of settings, with the names below and _ for - [{CONFIG}]"
    )
    texts = help_texts()
    for setting, kind in _options():
        if only is not None and setting.name not in only:
            continue
        default = "" if setting.default in (None, ()) else f" ({_written(setting.default)})"
        form: dict[str, Any] = {"type": kind.from_text, "metavar": setting.name.upper()}
        if isinstance(setting.default, bool):
            form = {"action": argparse.BooleanOptionalAction}
        (either if setting.name == "checkpoint" else parser).add_argument(
            f"--{setting.name.replace('_', '-')}",
            default=argparse.SUPPRESS,  # absent options must not override the environment and the file
            help=f"{texts[setting.name]}{default} [{PREFIX}{setting.name.upper()}]".replace("%", "%%"),
            **form,
        )


def read_settings(arguments: argparse.Namespace, environment: Mapping[str, str]) -> ServerSettings:
    """Return the settings of a parsed command line, the variables that start with THOUGHTBUBBLES_, and the TOML file.

    Raises `ValueError` that names an unknown setting or one of the wrong type, `OSError` if the file cannot be read.
    """
    given = {setting.name: getattr(arguments, setting.name) for setting, _ in _options() if setting.name in arguments}
    file = arguments.config or environment.get(CONFIG)
    return ServerSettings(**(({} if file is None else _from_file(Path(file))) | _from_environment(environment) | given))


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    kinds = {PREFIX + setting.name.upper(): (setting.name, kind) for setting, kind in _settings()}
    given = [name for name in environment if name.startswith(PREFIX) and name not in {CONFIG, TESTS_ONLY}]
    _refuse_unknown(given, kinds, "the environment")
    return {kinds[name][0]: _read(name, kinds[name][1], environment[name]) for name in given}


def _from_file(file: Path) -> dict[str, Any]:
    text = read_settings_file(file)
    try:
        given = tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{file} is not TOML that can be read: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{file} is not TOML: {error}") from None
    kinds = {setting.name: kind for setting, kind in _options()}
    _refuse_unknown(given, kinds, str(file))
    return {name: _read_toml(f"{name} in {file}", kinds[name], value) for name, value in given.items()}


def _refuse_unknown(given: Iterable[str], known: Iterable[str], source: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{source} has unknown settings: {', '.join(unknown)}; see thoughtbubbles serve --help")


def _read(name: str, kind: Kind, text: str) -> object:
    try:
        return kind.from_text(text)
    except ValueError:
        # The error of a list of keys does not repeat one.
        raise ValueError(f"{name} {EMPTY if kind.words == 'keys' else f'must be {kind.words}, not {text!r}'}") from None


def _read_toml(name: str, kind: Kind, value: object) -> object:
    try:
        if type(value) not in kind.in_toml:
            raise ValueError
        return kind.from_toml(value)
    except ValueError:
        raise ValueError(f"{name} must be {kind.words}, not {value!r}") from None


def _settings() -> Iterator[tuple[Field[Any], Kind]]:
    """Yield each setting and its kind."""
    hints = get_type_hints(ServerSettings)
    for setting in fields(ServerSettings):
        hint = hints[setting.name]
        yield setting, KINDS.get(hint) or next(KINDS[each] for each in get_args(hint) if each in KINDS)


def _options() -> Iterator[tuple[Field[Any], Kind]]:
    """Yield the settings that a command line or a file may have."""
    return (each for each in _settings() if each[1].in_toml)


def _written(default: object) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
