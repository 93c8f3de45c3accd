"""Sampling and forking parameters of a request."""

import math
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal

from thoughtbubbles.engine.errors import InvalidRequest
from thoughtbubbles.engine.structured.grammar import Grammar
from thoughtbubbles.model import ForkBias, document_fields

ForkSelection = Literal["causal", "dynamic", "fixed"]
MAX_LOGPROBS = 20
MIN_TEMPERATURE = 1e-5
"""Temperatures below are greedy, as 0 is: logits over them may be too large for float32."""
MAX_LOGIT_BIAS = 100
MAX_FORK_BIAS = 100
MAX_FORK_BIASES = 256
"""Most entries of `fork_bias`; each costs a little in every step."""

# setting: (lowest, highest, whether the lowest itself is allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "max_tokens": (0, math.inf, True),
    "temperature": (0, 2, True),
    "top_p": (0, 1, False),
    "top_k": (0, 2**31 - 1, True),
    "min_p": (0, 1, True),
    "presence_penalty": (-2, 2, True),
    "frequency_penalty": (-2, 2, True),
    "repetition_penalty": (0, math.inf, False),
    "seed": (-(2**63), 2**63 - 1, True),
    "min_tokens": (0, math.inf, True),
    "logprobs": (0, MAX_LOGPROBS, True),
    "prompt_logprobs": (0, MAX_LOGPROBS, True),
    "fork_ratio": (1, math.inf, True),
}
_WHOLE = {"max_tokens", "top_k", "seed", "min_tokens", "logprobs", "prompt_logprobs"}
_OPTIONAL = {"seed", "logprobs", "prompt_logprobs", "fork_ratio"}
"""Numbers that may be None."""


@document_fields
@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """Parameters of one request. Raises `InvalidRequest` naming the one that is out of range."""

    max_tokens: int = 16
    """Most tokens to generate; 0 only scores the prompt."""
    temperature: float = 1.0
    """Divides the logits; 0, and what is below `MIN_TEMPERATURE`, is greedy."""
    top_p: float = 1.0
    """Keep the fewest tokens whose probabilities reach this, at least one."""
    top_k: int = 0
    """Keep this many tokens; 0 is off."""
    min_p: float = 0.0
    """Keep tokens of at least this share of the likeliest one's probability."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of every token generated so far."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time it was generated."""
    repetition_penalty: float = 1.0
    """Divides the positive, multiplies the negative logits of tokens in prompt or completion."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids; -100 … 100."""
    seed: int | None = None
    """The same request with the same seed gives the same tokens, alone or in any batch."""
    stop: tuple[str, ...] = ()
    """Strings that end the completion."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the completion, beside end-of-text."""
    include_stop: bool = False
    """Whether the stop string is part of the text."""
    min_tokens: int = 0
    """Tokens to generate before anything may end the completion, but a grammar that leaves nothing else."""
    ignore_eos: bool = False
    """Whether end-of-text is a token like any other."""
    logprobs: int | None = None
    """Alternatives to report beside each generated token's log-probability; 0: the chosen token alone; None: off."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens."""
    fork_ratio: float | None = None
    """r, streams per token that the budget allows (None: the checkpoint's κ / L)."""
    fork_selection: ForkSelection = "causal"
    """The rule that picks survivors; `dynamic` and `fixed` recompute for every token what it changes."""
    fork_bias: tuple[ForkBias, ...] = ()
    """Interventions in the forks of single tokens, of prompt or completion, each bias -100 … 100; at most 256. A
    request that has some is computed as under `dynamic`: it shares no prefix with others, and is not preempted."""

    grammar: Grammar | None = None
    """What the completion must match; it ends where the grammar leaves nothing but its end."""
    return_fork_counts: bool = False
    """Whether events report the streams of each token; they then come one step later, when these are known."""
    return_fork_scores: bool = False
    """Whether events report P of each token's streams after every fork layer, also one step later. Such a request is
    computed as one with `fork_bias`."""

    def __post_init__(self) -> None:
        for name in _RANGES:
            self._check_number(name)
        self._check_types()
        for token_id, bias in self.logit_bias.items():
            if not -MAX_LOGIT_BIAS <= bias <= MAX_LOGIT_BIAS:
                limits = f"-{MAX_LOGIT_BIAS} … {MAX_LOGIT_BIAS}"
                raise InvalidRequest(f"logit_bias of token {token_id} must be {limits}, not {bias}", param="logit_bias")
        if self.grammar is not None and self.ignore_eos:
            message = f"ignore_eos cannot be set with {self.grammar.param}, which ends the completion"
            raise InvalidRequest(message, param="ignore_eos")
        self._check_fork_bias()
        self._check_stop()
        if self.fork_selection not in ("causal", "dynamic", "fixed"):
            raise InvalidRequest(f"fork_selection must be causal, dynamic or fixed, not {self.fork_selection!r}",
                                 param="fork_selection")  # fmt: skip

    def _check_number(self, name: str) -> None:
        value, (low, high, inclusive) = getattr(self, name), _RANGES[name]
        if value is None and name in _OPTIONAL:
            return
        right = isinstance(value, Integral if name in _WHOLE else Real)  # mypy would narrow it to `Real`
        if not right:
            wanted = "a whole number" if name in _WHOLE else "a number"
            raise InvalidRequest(f"{name} must be {wanted}, not {value!r}", param=name, code="invalid_type")
        if not (low < value <= high or (inclusive and value == low)):
            bounds = f"{'at least' if inclusive else 'above'} {low}" + (f", at most {high}" * (high < math.inf))
            raise InvalidRequest(f"{name} must be {bounds}, not {value}", param=name)

    def _check_types(self) -> None:
        """Check the types of settings that are no numbers: a wrong one would fail in a step, and other requests too."""
        bias = self.logit_bias
        for name, right, wanted in (
            ("stop", _has_only(str, self.stop), "a tuple of strings"),
            ("stop_token_ids", _has_only(Integral, self.stop_token_ids), "a tuple of token ids"),
            ("logit_bias", isinstance(bias, Mapping) and _are(Integral, bias) and _are(Real, bias.values()),
             "a mapping from token ids to numbers"),
            ("fork_bias", _has_only(ForkBias, self.fork_bias), "a tuple of ForkBias"),
            ("grammar", self.grammar is None or isinstance(self.grammar, Grammar), "a Grammar or None"),
        ):  # fmt: skip
            if not right:
                message = f"{name} must be {wanted}, not {reprlib.repr(getattr(self, name))}"
                raise InvalidRequest(message, param=name, code="invalid_type")

    def _check_stop(self) -> None:
        if "" in self.stop:
            raise InvalidRequest("stop must not contain an empty string", param="stop")

    def _check_fork_bias(self) -> None:
        if len(self.fork_bias) > MAX_FORK_BIASES:
            raise InvalidRequest(f"fork_bias must have at most {MAX_FORK_BIASES} entries, not {len(self.fork_bias)}",
                                 param="fork_bias")  # fmt: skip
        for i, each in enumerate(self.fork_bias):
            if not -MAX_FORK_BIAS <= each.bias <= MAX_FORK_BIAS:
                limits = f"-{MAX_FORK_BIAS} … {MAX_FORK_BIAS}"
                raise InvalidRequest(f"fork_bias[{i}].bias must be {limits}, not {each.bias}", param="fork_bias")
            if each.row is not None:
                raise InvalidRequest(f"fork_bias[{i}].row must be None: a request is one row", param="fork_bias")

    @property
    def reports_forks(self) -> bool:
        """Whether events wait for the streams of their tokens."""
        return self.return_fork_counts or self.return_fork_scores

    @property
    def effective_temperature(self) -> float:
        """The divisor of the logits; 0 for greedy sampling."""
        return self.temperature if self.temperature >= MIN_TEMPERATURE else 0.0

    @property
    def log_min_p(self) -> float:
        """How far a logit over temperature may be below the highest; -inf where `min_p` is off."""
        return math.log(self.min_p) if self.min_p else -math.inf

    @property
    def changes_draws(self) -> bool:
        """Whether more than seed, position, temperature and logits decides which token is drawn, or is reported."""
        restricts = self.effective_temperature > 0 and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)
        return self.adjusts_logits or restricts or self.logprobs is not None or self.grammar is not None

    @property
    def adjusts_logits(self) -> bool:
        """Whether penalties or biases change what the model says."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias)


def _has_only(kind: type, values: object) -> bool:
    """Return whether `values` is a collection of `kind`, and not a text."""
    return isinstance(values, Collection) and not isinstance(values, str | bytes) and _are(kind, values)


def _are(kind: type, values: Iterable[object]) -> bool:
    return all(issubclass(each, kind) for each in set(map(type, values)))  # there may be many values, of few types
