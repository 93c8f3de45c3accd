"""Random JSON schemas, of what real ones are made of."""

import random
from typing import Any

Schema = dict[str, Any]

FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email", "hostname")
PATTERNS = ("^[a-z]{2,5}$", "^x[0-9]+y$", "[A-C]", "^(red|green|blue)( (light|dark))?$")
NAMES = ("name", "age", "é", 'quo"te', "with space", "tags", "id", "x1")


def random_schema(dice: random.Random) -> Schema:
    """A schema whose shortest texts take some dozens of bytes."""
    return {"$defs": {"part": _schema(dice, 0)}, **_schema(dice, 2)}


def _schema(dice: random.Random, depth: int) -> Schema:
    leaves = [_string, _integer, _number, _enum, _constant, _flag, _union]
    inner = [_object, _array, _any_of, _referring] if depth else []
    return dice.choice([*leaves, *inner, *inner])(dice, depth)


def _string(dice: random.Random, _depth: int) -> Schema:
    match dice.randrange(4):
        case 0:
            return {"type": "string", "format": dice.choice(FORMATS)}
        case 1:
            return {"type": "string", "pattern": dice.choice(PATTERNS), "maxLength": 12}
        case _:
            shortest = dice.randrange(3)
            return {"type": "string", "minLength": shortest, "maxLength": shortest + dice.randrange(6)}


def _integer(dice: random.Random, _depth: int) -> Schema:
    low = dice.randrange(-500, 500)
    schema: Schema = {"type": "integer", "minimum": low, "maximum": low + dice.randrange(2000)}
    if dice.random() < 0.2:
        schema = {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": low + 2 + dice.randrange(50)}
    if dice.random() < 0.1:
        schema = {"type": "integer", "multipleOf": dice.choice((2, 5, 12)), "minimum": 0, "maximum": 1000}
    return schema


def _number(dice: random.Random, _depth: int) -> Schema:
    low = round(dice.uniform(-50, 50), 2)
    return {"type": "number", "minimum": low, "maximum": round(low + dice.uniform(1, 100), 2)}


def _enum(dice: random.Random, _depth: int) -> Schema:
    values = ["a", "ab", "ü", "\n", "", 1, -2, 1.5, None, True, [1, "x"], {"k": None}]
    return {"enum": dice.sample(values, dice.randrange(1, 6))}


def _constant(dice: random.Random, _depth: int) -> Schema:
    return {"const": dice.choice(["fixed", 7, None, {"a": [1, 2]}])}


def _flag(dice: random.Random, _depth: int) -> Schema:
    return {"type": dice.choice(["boolean", "null"])}


def _union(dice: random.Random, _depth: int) -> Schema:
    return {"type": dice.sample(["boolean", "null", "integer"], 2), "maximum": 99, "minimum": -99}


def _object(dice: random.Random, depth: int) -> Schema:
    names = dice.sample(NAMES, dice.randrange(4))
    schema: Schema = {
        "type": "object",
        "properties": {name: _schema(dice, depth - 1) for name in names},
        "required": dice.sample(names, dice.randrange(len(names) + 1)),
        "additionalProperties": False,
    }
    if dice.random() < 0.15:
        schema["additionalProperties"] = {"type": "boolean"}
    return schema


def _array(dice: random.Random, depth: int) -> Schema:
    if dice.random() < 0.25:
        items = [_schema(dice, depth - 1) for _ in range(dice.randrange(1, 3))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": len(items)}
    fewest = dice.randrange(3)
    return {
        "type": "array", "items": _schema(dice, depth - 1), "minItems": fewest,
        "maxItems": fewest + dice.randrange(3),
    }  # fmt: skip


def _any_of(dice: random.Random, depth: int) -> Schema:
    return {"anyOf": [_schema(dice, depth - 1) for _ in range(dice.randrange(2, 4))]}


def _referring(_dice: random.Random, _depth: int) -> Schema:
    reference = {"$ref": "#/$defs/part"}
    return {
        "type": "object", "properties": {"one": reference, "two": reference}, "required": ["one"],
        "additionalProperties": False,
    }  # fmt: skip
