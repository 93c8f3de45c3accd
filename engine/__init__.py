"""Turns a Thoughtbubbles model into a service: continuous batching over a fork-state cache; synchronous."""

from thoughtbubbles.engine.cache.fork_cache import most_streams
from thoughtbubbles.engine.completion import Completion
from thoughtbubbles.engine.config import CacheDtype, EngineConfig, ExecutorKind, WeightKind
from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.engine import Engine
from thoughtbubbles.engine.errors import ClientQueueFull, EngineError, InvalidRequest, QueueFull
from thoughtbubbles.engine.prompt_report import ForkScores, PromptReport
from thoughtbubbles.engine.request import FinishReason, Group, RequestUsage, TokenEvent
from thoughtbubbles.engine.sampling_params import (
    MAX_FORK_BIAS,
    MAX_FORK_BIASES,
    MAX_LOGPROBS,
    ForkSelection,
    SamplingParams,
)
from thoughtbubbles.engine.stats import EngineStats, StepReport
from thoughtbubbles.engine.structured.compiler import check_grammar, is_compiled
from thoughtbubbles.engine.structured.grammar import Grammar
from thoughtbubbles.model import set_threads

if __name__ != "thoughtbubbles.engine":  # in a checkout, which would have each module a second time
    raise ImportError("import thoughtbubbles.engine instead of engine")

__all__ = [
    "MAX_FORK_BIAS",
    "MAX_FORK_BIASES",
    "MAX_LOGPROBS",
    "CacheDtype",
    "ClientQueueFull",
    "Completion",
    "Detokenizer",
    "Engine",
    "EngineConfig",
    "EngineError",
    "EngineStats",
    "ExecutorKind",
    "FinishReason",
    "ForkScores",
    "ForkSelection",
    "Grammar",
    "Group",
    "InvalidRequest",
    "PromptReport",
    "QueueFull",
    "RequestUsage",
    "SamplingParams",
    "StepReport",
    "TokenEvent",
    "WeightKind",
    "check_grammar",
    "is_compiled",
    "most_streams",
    "set_threads",
]
