"""The nouns that all parts of the server share: the served model, and one request to its engine."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from thoughtbubbles.engine import SamplingParams
from thoughtbubbles.model import ChatTemplate, ModelConfig, Tokenizer


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The model that a server serves, and the limits of its requests. Constant; any thread may read it.

    Only weights can be replaced while a server runs, which gives it another object.
    """

    name: str
    """The name that clients use."""
    revision: str | None = None
    """The commit of its repository on a hub; None for a folder."""
    weights_version: str
    """A digest of its weights (`server.bridge.weights`)."""
    config: ModelConfig
    """Its architecture."""
    tokenizer: Tokenizer
    """Its tokenizer."""
    max_model_len: int
    """The context: most tokens of prompt and completion together."""
    max_waiting_streams: int
    """Most streams that all waiting requests may need."""
    max_client_streams: int | None = None
    """Most streams that the waiting requests of one client may need when complete; None: no limit."""
    max_choices: int
    """Most choices of one request."""
    parameters: int
    """Number of weights; the tied head counts once."""
    device: str
    """The torch device that it runs on."""
    executor: str = "portable"
    """The engine's executor."""
    chat_template: ChatTemplate | None = None
    """Turns a conversation into a prompt; None if the checkpoint has none."""
    created: int = field(default_factory=lambda: int(time.time()))
    """When it was loaded, in seconds since 1970."""

    def labels(self) -> Mapping[str, str]:
        """Return the labels of the metric `model_info`."""
        return {
            "model": self.name,
            "parameters": str(self.parameters),
            "fork_layers": ",".join(map(str, self.config.fork_layers)),
            "max_model_len": str(self.max_model_len),
            "device": self.device,
            "weights_version": self.weights_version,
        }

    def with_weights(self, version: str, revision: str | None) -> Self:
        """Return the same model with other weights, loaded now."""
        return replace(self, weights_version=version, revision=revision, created=int(time.time()))


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One sequence for the engine: one choice of one prompt."""

    request_id: str
    """The engine's name for it: the completion's id and a number, unique in this process."""
    prompt: Sequence[int]
    """Token ids, at least one."""
    params: SamplingParams
    """How to continue the prompt."""
