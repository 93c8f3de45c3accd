"""What clients may send (API.md §1 and §5): types and ranges that hold whatever model is served."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

INT64 = 1 << 63

LONGEST_TEXT = 1 << 20
"""In characters: its token ids are made in one call, while which no other thread runs Python."""

Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
# Of many mistakes the first is told: `fail_fast`, for to collect them all takes a minute.
TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]


def _prompt_form(value: object) -> str | None:
    """Which of the four forms a prompt has, told by its first element; None when it is none of them."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    first = value[0] if value else 0
    return {str: "texts", int: "ids", list: "batch"}.get(type(first))


Prompt = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(max_length=1024, fail_fast=True), Tag("texts")]
    | Annotated[TokenIds, Tag("ids")]
    | Annotated[list[TokenIds], Field(max_length=1024, fail_fast=True), Tag("batch")],
    Discriminator(_prompt_form),
]


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1)]
StopList = Annotated[list[Stop], Field(max_length=64, fail_fast=True)]
StopStrings = Annotated[StopList, BeforeValidator(_listed, json_schema_input_type=Stop | StopList)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _first_mistake(biases: object) -> object:
    """Return a dictionary with the first of its mistakes alone, if it has any: dictionaries have no `fail_fast`."""
    if isinstance(biases, dict):
        for name, bias in biases.items():
            if type(bias) not in {int, float} or not -100 <= bias <= 100:
                return {name: bias}
    return biases


Biases = Annotated[dict[str, Bias], BeforeValidator(_first_mistake, json_schema_input_type=dict[str, Bias])]


class RequestBody(BaseModel):
    """A JSON object: null means absent, no type is converted, unknown fields are kept apart in `model_extra`."""

    model_config = ConfigDict(
        strict=True,
        frozen=True,
        extra="allow",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, body: object) -> object:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


class StreamOptions(RequestBody):
    """What a stream carries besides text."""

    include_usage: bool = False
    """One more chunk at the end with the usage of the whole request."""
    continuous_usage_stats: bool = False
    """Usage so far in every chunk."""


class GenerationRequest(RequestBody):
    """What any request to generate may say. A field that is absent or null has the value given here."""

    model: str = ""
    """The served model's name; empty means that model."""
    temperature: float = Field(1.0, ge=0, le=2)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the fewest tokens that hold this much probability."""
    n: int = Field(1, ge=1, le=128)
    """Choices for each prompt."""
    seed: int | None = Field(None, ge=-INT64, le=INT64 - 1)
    """The same request with the same seed gives the same tokens."""
    stop: StopStrings = []
    """Strings that end a choice; they are not returned."""
    stream: bool = False
    """Answer in server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Subtracted once from the logit of every token that has been generated."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """Subtracted as often as the token has been generated."""
    logit_bias: Biases = {}
    """Added to the logits of these token ids."""
    user: str | None = None
    """Of no consequence here."""
    top_k: int = Field(0, ge=-1)
    """Sample from this many tokens; 0 and -1 from all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Sample from tokens at least this probable, measured against the most probable one."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1, tokens of the prompt and the completion become less likely."""
    min_tokens: int = Field(0, ge=0)
    """No end before this many tokens."""
    ignore_eos: bool = False
    """Go on after end-of-text."""
    stop_token_ids: list[int] = Field([], max_length=64, fail_fast=True)
    """Token ids that end a choice."""
    include_stop_str_in_output: bool = False
    """Return the stop string too."""
    return_token_ids: bool = False
    """Add `token_ids` and `prompt_token_ids` to each choice."""
    fork_ratio: float | None = Field(None, ge=1)
    """r, streams per token that the budget allows; nothing means the checkpoint's κ/L."""
    fork_selection: Literal["causal", "dynamic", "fixed"] = "causal"
    """The selection rule (SPEC.md)."""
    return_fork_counts: bool = False
    """Add `fork_counts` to each choice."""


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Prompt = ""
    """Text or token ids, one or many; nothing means the end-of-text token."""
    max_tokens: int = Field(16, ge=0, le=INT64 - 1)
    """Most tokens generated for each choice; 0 scores the prompt."""
    best_of: int | None = None
    """Choices computed for each prompt, of which the n of highest mean log-probability are returned."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Log-probabilities of the chosen token and of this many others."""
    echo: bool = False
    """Return the prompt before the completion."""
    suffix: str | None = None
    """Not supported: the model writes forwards."""

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """Each prompt."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast("Sequence[str | Sequence[int]]", [self.prompt] if single else self.prompt)

    @property
    def candidates(self) -> int:
        """Choices computed for each prompt."""
        return self.n if self.best_of is None else self.best_of


class TokenizeRequest(RequestBody):
    """Body of POST /tokenize."""

    prompt: Text
    """The text to encode."""
    add_special_tokens: bool = True
    """Accepted for other servers' clients; this tokenizer adds none."""


class DetokenizeRequest(RequestBody):
    """Body of POST /detokenize."""

    tokens: list[int] = Field(fail_fast=True)
    """The ids to decode."""


Json = dict[str, Any]
"""A JSON object on its way out."""
