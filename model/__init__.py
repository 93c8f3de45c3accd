"""The Thoughtbubbles architecture on a single device (SPEC.md); imports nothing else of this project."""

from model.chat import ChatTemplate
from model.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint, shipped_checkpoint
from model.config import ModelConfig
from model.forking import Fork, Streams
from model.memory import lack_of_memory, require_memory
from model.segments import backend as segments_backend
from model.selection import Rule, Selection, budget
from model.threads import set_threads
from model.tokenizer import Tokenizer
from model.transformer import ForkingBlock, Thoughtbubbles

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
