"""From a checkpoint folder to a running engine, and what the routes may know of it."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from thoughtbubbles.engine import Engine, EngineConfig, SamplingParams, set_threads
from thoughtbubbles.model import (
    ChatTemplate,
    ModelConfig,
    Thoughtbubbles,
    Tokenizer,
    load_checkpoint,
    require_memory,
    shipped_checkpoint,
)
from thoughtbubbles.server.settings import ServerSettings


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What is served: facts that do not change, safe to read from any thread."""

    name: str
    """What clients call it."""
    config: ModelConfig
    """Its architecture."""
    tokenizer: Tokenizer
    """Text to token ids and back."""
    max_model_len: int
    """The context: most tokens of prompt and completion together."""
    max_waiting_streams: int
    """Most streams that those who wait may need."""
    max_client_streams: int | None = None
    """Most streams that the waiting requests of one client may need when complete; None: no limit of its own."""
    max_choices: int = ServerSettings.max_choices
    """Most choices of one request."""
    parameters: int
    """Weights, the tied head counted once."""
    device: str
    """Where it runs."""
    chat_template: ChatTemplate | None = None
    """From a conversation to a prompt; None where the checkpoint has none."""
    created: int = field(default_factory=lambda: int(time.time()))
    """When it was loaded, in seconds since 1970."""

    def labels(self) -> Mapping[str, str]:
        """What tells this model from others, for `model_info`."""
        return {
            "model": self.name,
            "parameters": str(self.parameters),
            "fork_layers": ",".join(map(str, self.config.fork_layers)),
            "max_model_len": str(self.max_model_len),
            "device": self.device,
        }


def load_model(settings: ServerSettings) -> tuple[Engine, ServedModel]:
    """Load the checkpoint and warm the engine up.

    `ValueError` (a `CheckpointError` among them) or `OSError` saying what is wrong with checkpoint or settings.
    """
    folder = settings.checkpoint or shipped_checkpoint()
    checkpoint = load_checkpoint(folder, device=settings.device, dtype=getattr(torch, settings.dtype))
    set_threads(settings.threads)
    config = EngineConfig(
        max_batch_size=settings.max_batch_size,
        max_waiting_streams=settings.max_waiting_streams,
        max_client_share=settings.max_client_share,
        max_model_len=settings.max_model_len,
        cache_bytes=settings.cache_bytes,
    )
    if settings.device == "cpu":  # another device says itself that it has no more
        require_memory(settings.cache_bytes, f"cache_bytes {settings.cache_bytes}")
    _warm_up(checkpoint.model, checkpoint.tokenizer)
    engine = Engine(checkpoint.model, checkpoint.tokenizer, config)
    return engine, ServedModel(
        name=settings.model_name or folder.resolve().name,
        config=checkpoint.model.config,
        tokenizer=checkpoint.tokenizer,
        max_model_len=engine.max_model_len,
        max_waiting_streams=settings.max_waiting_streams,
        max_client_streams=config.max_client_streams,
        max_choices=settings.max_choices,
        parameters=sum(weight.numel() for weight in checkpoint.model.parameters()),
        device=settings.device,
        chat_template=None if checkpoint.chat_template is None else ChatTemplate(checkpoint.chat_template),
    )


def _warm_up(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    """Take the first steps of the process, which are slow, in an engine that counts for nothing."""
    engine = Engine(model, tokenizer, EngineConfig(max_batch_size=1, max_model_len=3))
    engine.generate([[tokenizer.end_of_text]], SamplingParams(max_tokens=2, ignore_eos=True))
