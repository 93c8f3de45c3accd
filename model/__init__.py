"""The Thoughtbubbles architecture on a single device (SPEC.md); imports nothing else of this project."""

from model.config import ModelConfig
from model.forking import Fork, Streams
from model.selection import Rule, Selection, budget
from model.transformer import ForkingBlock, Thoughtbubbles

__all__ = ["Fork", "ForkingBlock", "ModelConfig", "Rule", "Selection", "Streams", "Thoughtbubbles", "budget"]
