"""`help()` shows every field of a configuration with its docstring."""

import pydoc
from dataclasses import fields
from typing import Any

import pytest

from thoughtbubbles.engine import EngineConfig, SamplingParams
from thoughtbubbles.model import ForkBias, Hook, ModelConfig, StreamEdit
from thoughtbubbles.model.fields import field_docs
from thoughtbubbles.training.config import TrainConfig

CLASSES = (EngineConfig, ForkBias, Hook, ModelConfig, SamplingParams, StreamEdit, TrainConfig)


@pytest.mark.parametrize("cls", CLASSES)
def test_help_shows_every_field(cls: type[Any]) -> None:
    shown, docs = pydoc.render_doc(cls, renderer=pydoc.plaintext), field_docs(cls)
    assert set(docs) == {field.name for field in fields(cls)}
    lines = {line.strip(" |") for line in shown.splitlines()}
    for name, doc in docs.items():
        assert f"{name}:" in lines
        assert set(doc.splitlines()) <= lines
