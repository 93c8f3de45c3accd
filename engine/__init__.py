"""Turns a Thoughtbubbles model into a service: continuous batching over a fork-state cache; synchronous."""

from engine.completion import Completion
from engine.config import EngineConfig
from engine.engine import Engine
from engine.errors import ClientQueueFull, EngineError, InvalidRequest, QueueFull
from engine.fork_cache import most_streams
from engine.prompt_report import PromptReport
from engine.request import FinishReason, RequestUsage, TokenEvent
from engine.sampling_params import MAX_LOGPROBS, ForkSelection, SamplingParams
from engine.stats import EngineStats, StepReport
from model import set_threads

__all__ = [
    "MAX_LOGPROBS",
    "ClientQueueFull",
    "Completion",
    "Engine",
    "EngineConfig",
    "EngineError",
    "EngineStats",
    "FinishReason",
    "ForkSelection",
    "InvalidRequest",
    "PromptReport",
    "QueueFull",
    "RequestUsage",
    "SamplingParams",
    "StepReport",
    "TokenEvent",
    "most_streams",
    "set_threads",
]
