"""Command-line flags: of the device, and one for each field of a frozen config, which overrides the recipe's value."""

import argparse
from dataclasses import fields, replace
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch

from thoughtbubbles.model.fields import field_docs

Config = TypeVar("Config")


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """Add --device, by default a GPU if there is one, and --threads."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="torch device, such as cpu or cuda (%(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (one fewer than its default)")


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
