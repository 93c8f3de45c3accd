"""Command-line flags from the fields of a frozen config: one flag per field; a flag overrides the recipe's value."""

import argparse
from dataclasses import fields, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from thoughtbubbles.model.fields import field_docs

Config = TypeVar("Config")


def add_field_flags(parser: argparse.ArgumentParser, config: type[Any]) -> None:
    """Add a flag for every field of the dataclass `config`; a flag that is not used is absent from the namespace."""
    group = parser.add_argument_group(f"settings of {config.__name__} that override the recipe's")
    hints, prose = get_type_hints(config), field_docs(config)
    for field in fields(config):
        flag = "--" + field.name.replace("_", "-")
        parsing = _parsing(hints[field.name])
        group.add_argument(
            flag, dest=field.name, default=argparse.SUPPRESS, help=prose[field.name].replace("%", "%%"), **parsing
        )


def override(config: Config, args: argparse.Namespace) -> Config:
    """Return `config` with the fields that `args` has. Raise `ValueError` as the config's own validation does."""
    names = {field.name for field in fields(config)}  # type: ignore[arg-type]
    changes = {name: value for name, value in vars(args).items() if name in names}
    return replace(config, **{n: tuple(v) if isinstance(v, list) else v for n, v in changes.items()})  # type: ignore[type-var]


def _parsing(hint: object) -> dict[str, Any]:
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        return {"type": get_args(hint)[0], "nargs": "*"}
    choices = get_args(hint)
    return {"choices": choices} if choices else {"type": hint}
