"""JSON that every reader accepts: it has no NaN and no infinity."""

import json
import math
from collections.abc import Mapping


def strict_json(values: Mapping[str, object]) -> str:
    """Return `values` as JSON on one line, with null for a number that is NaN or infinite."""
    finite = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}
    return json.dumps(finite, allow_nan=False)
