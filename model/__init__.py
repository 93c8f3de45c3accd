"""The Thoughtbubbles architecture on one device (SPEC.md), its checkpoints and its text; imports no other floor."""

from thoughtbubbles.model.checkpoint.checks import CheckpointError
from thoughtbubbles.model.checkpoint.read import Checkpoint, load_checkpoint, shipped_checkpoint
from thoughtbubbles.model.checkpoint.write import save_checkpoint
from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.extras import install_command
from thoughtbubbles.model.fields import document_fields
from thoughtbubbles.model.files.lock import lock_file
from thoughtbubbles.model.forking import Fork, Streams
from thoughtbubbles.model.interventions import ForkBias, Hook, Intervention, StreamEdit, check_fork_biases, record
from thoughtbubbles.model.memory import lack_of_memory, require_memory
from thoughtbubbles.model.segments import backend as segments_backend
from thoughtbubbles.model.selection import Rule, Selection, budget
from thoughtbubbles.model.text.chat import ChatTemplate
from thoughtbubbles.model.text.tokenizer import Tokenizer
from thoughtbubbles.model.threads import set_threads
from thoughtbubbles.model.transformer import ForkingBlock, Thoughtbubbles

if __name__ != "thoughtbubbles.model":  # imported by its folder in a checkout: each module would exist twice
    raise ImportError("import thoughtbubbles.model instead of model")

__all__ = [
    "ChatTemplate",
    "Checkpoint",
    "CheckpointError",
    "Fork",
    "ForkBias",
    "ForkingBlock",
    "Hook",
    "Intervention",
    "ModelConfig",
    "Rule",
    "Selection",
    "StreamEdit",
    "Streams",
    "Thoughtbubbles",
    "Tokenizer",
    "budget",
    "check_fork_biases",
    "document_fields",
    "install_command",
    "lack_of_memory",
    "load_checkpoint",
    "lock_file",
    "record",
    "require_memory",
    "save_checkpoint",
    "segments_backend",
    "set_threads",
    "shipped_checkpoint",
]
