"""The Thoughtbubbles architecture on a single device (SPEC.md); imports nothing else of this project."""

from thoughtbubbles.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    shipped_checkpoint,
)
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.forking import Fork, Streams
from thoughtbubbles.model.memory import lack_of_memory, require_memory
from thoughtbubbles.model.segments import backend as segments_backend
from thoughtbubbles.model.selection import Rule, Selection, budget
from thoughtbubbles.model.text.chat import ChatTemplate
from thoughtbubbles.model.text.tokenizer import Tokenizer
from thoughtbubbles.model.threads import set_threads
from thoughtbubbles.model.transformer import ForkingBlock, Thoughtbubbles

if __name__ != "thoughtbubbles.model":  # in a checkout, which would have each module a second time
    raise ImportError("import thoughtbubbles.model instead of model")

__all__ = [
    "ChatTemplate",
    "Checkpoint",
    "CheckpointError",
    "Fork",
    "ForkingBlock",
    "ModelConfig",
    "Rule",
    "Selection",
    "Streams",
    "Thoughtbubbles",
    "Tokenizer",
    "budget",
    "lack_of_memory",
    "load_checkpoint",
    "require_memory",
    "save_checkpoint",
    "segments_backend",
    "set_threads",
    "shipped_checkpoint",
]
