"""Load a checkpoint into an engine."""

from dataclasses import replace
from typing import cast

import torch

from thoughtbubbles.engine import (
    CacheDtype,
    Engine,
    EngineConfig,
    ExecutorKind,
    SamplingParams,
    WeightKind,
    set_threads,
)
from thoughtbubbles.model import (
    ChatTemplate,
    Thoughtbubbles,
    Tokenizer,
    load_checkpoint,
    require_memory,
    shipped_checkpoint,
)
from thoughtbubbles.server.bridge.weights import weights_version
from thoughtbubbles.server.core import ServedModel
from thoughtbubbles.server.settings import ServerSettings


def load_model(settings: ServerSettings) -> tuple[Engine, ServedModel]:
    """Return an engine that has the settings' checkpoint, warmed up, and what the routes need to know of the model.

    Raises `ValueError` (`CheckpointError` is one) or `OSError` if the checkpoint or a setting is wrong.
    """
    source = settings.checkpoint or shipped_checkpoint()
    checkpoint = load_checkpoint(source, device=settings.device, dtype=getattr(torch, settings.dtype))
    set_threads(settings.threads)
    config = EngineConfig(
        max_batch_size=settings.max_batch_size,
        max_waiting_streams=settings.max_waiting_streams,
        max_client_share=settings.max_client_share,
        max_model_len=settings.max_model_len,
        cache_bytes=settings.cache_bytes,
        cache_dtype=cast(CacheDtype | None, settings.cache_dtype),
        executor=cast(ExecutorKind, settings.executor),
        speculate=settings.speculate,
        weights=cast(WeightKind, settings.weights),
    )
    if settings.device == "cpu":  # other devices raise when they run out of memory
        require_memory(settings.cache_bytes, f"cache_bytes {settings.cache_bytes}")
    _warm_up(checkpoint.model, checkpoint.tokenizer, config)
    engine = Engine(checkpoint.model, checkpoint.tokenizer, config)
    return engine, ServedModel(
        name=settings.model_name or checkpoint.name,
        revision=checkpoint.revision,
        weights_version=weights_version(checkpoint.model.state_dict()),
        config=checkpoint.model.config,
        tokenizer=checkpoint.tokenizer,
        max_model_len=engine.max_model_len,
        max_waiting_streams=settings.max_waiting_streams,
        max_client_streams=config.max_client_streams,
        max_choices=settings.max_choices,
        parameters=sum(weight.numel() for weight in checkpoint.model.parameters()),
        device=settings.device,
        executor=engine.executor.name,
        chat_template=None if checkpoint.chat_template is None else ChatTemplate(checkpoint.chat_template),
    )


def _warm_up(model: Thoughtbubbles, tokenizer: Tokenizer, config: EngineConfig) -> None:
    """Take the process's first steps, which are slow, in another engine, so that the served one does not count them."""
    engine = Engine(model, tokenizer, replace(config, max_batch_size=1, max_model_len=3))
    engine.generate([[tokenizer.end_of_text]], SamplingParams(max_tokens=2, ignore_eos=True))
