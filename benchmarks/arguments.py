"""Arguments whose defaults depend on the device."""

import argparse
from collections.abc import Mapping
from typing import Any


def parse_arguments(parser: argparse.ArgumentParser, defaults: Mapping[str, Mapping[str, Any]]) -> argparse.Namespace:
    """Return the command's arguments; those that are not given are as in `defaults` of the chosen `--device`."""
    args = parser.parse_args()
    for name, value in defaults[args.device].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args
