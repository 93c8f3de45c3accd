"""The engine's small model and engine."""

from tests.engine.conftest import engine, make_model, model, tokenizer  # noqa: F401 (fixtures are found by their names here)
