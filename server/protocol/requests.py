"""The bodies of requests: types and ranges that do not depend on the served model (API.md §1 and §5)."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from thoughtbubbles.engine import MAX_FORK_BIAS, MAX_FORK_BIASES

INT64 = 1 << 63

MAX_TEXT_LENGTH = 1 << 20
"""In characters. A text is tokenized in one call, and meanwhile no other thread runs Python."""

Text = Annotated[str, Field(max_length=MAX_TEXT_LENGTH)]
# `fail_fast`: only the first mistake is reported, and collecting all can take a minute.
TokenIds = Annotated[list[int], Field(min_length=1, fail_fast=True)]


def _prompt_form(value: object) -> str | None:
    """Return which of the four forms a prompt has, by its first element; None if it has none of them."""
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


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1)]
StopList = Annotated[list[Stop], Field(max_length=64, fail_fast=True)]
StopStrings = Annotated[StopList, BeforeValidator(_as_list, json_schema_input_type=Stop | StopList)]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _first_mistake(biases: object) -> object:
    """Return only the first wrong entry of a dictionary, or all if none is: dictionaries have no `fail_fast`."""
    if isinstance(biases, dict):
        for name, bias in biases.items():
            if type(bias) not in {int, float} or not -100 <= bias <= 100:
                return {name: bias}
    return biases


Biases = Annotated[dict[str, Bias], BeforeValidator(_first_mistake, json_schema_input_type=dict[str, Bias])]


class RequestBody(BaseModel):
    """A JSON object. Null means absent, no type is converted, and unknown fields are in `model_extra`."""

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
    """Usage in a stream."""

    include_usage: bool = False
    """Send one more chunk at the end, with the usage of the whole request."""
    continuous_usage_stats: bool = False
    """Send the usage so far in every chunk."""


class ForkBiasEntry(RequestBody):
    """An intervention in the forks that one fork layer makes of one token's streams."""

    layer: int = Field(ge=0)
    """The fork layer, counted from 0."""
    position: int = Field(ge=0)
    """The token of prompt and completion, counted from 0."""
    bias: float = Field(0.0, ge=-MAX_FORK_BIAS, le=MAX_FORK_BIAS)
    """Added to the fork logit of each of the token's streams."""
    select: Literal["by_rule", "always", "never"] = "by_rule"
    """Whether the fork copies survive: as the selection rule says, always or never."""


def _schema(value: object) -> object:
    if not isinstance(value, dict | bool):
        raise PydanticCustomError("schema_type", "neither an object nor a boolean")
    return value


def _schema_text(value: object) -> object:
    if not isinstance(value, dict | bool | str):
        raise PydanticCustomError("schema_text_type", "neither an object, a boolean nor a string")
    return value


Schema = Annotated[Any, BeforeValidator(_schema, json_schema_input_type=dict[str, Any] | bool)]
SchemaText = Annotated[Any, BeforeValidator(_schema_text, json_schema_input_type=dict[str, Any] | bool | str)]
Choices = Annotated[list[str], Field(min_length=1, max_length=1024, fail_fast=True)]


class JsonSchema(RequestBody):
    """The schema of a response format."""

    name: str = ""
    """Accepted and not used."""
    description: str = ""
    """Accepted and not used."""
    json_schema: Schema = Field(alias="schema")
    """The JSON schema."""
    strict: bool = True
    """Accepted and not used: every schema is followed strictly."""


class ResponseFormat(RequestBody):
    """The form of the text, as OpenAI's API has it."""

    type: Literal["text", "json_object", "json_schema"]
    """Any text, a JSON object, or JSON that is valid under a schema."""
    json_schema: JsonSchema | None = None
    """Only with the type `json_schema`."""


class StructuredOutputs(RequestBody):
    """What the text must match, as newer versions of vLLM have it; at most one field."""

    json_text: SchemaText = Field(None, alias="json")
    """As `guided_json`."""
    regex: str | None = None
    """As `guided_regex`."""
    choice: Choices | None = None
    """As `guided_choice`."""
    grammar: str | None = None
    """As `guided_grammar`."""
    json_object: bool = False
    """A JSON object."""


class GenerationRequest(RequestBody):
    """Fields that completions and chats share. An absent or null field has its default."""

    model: str = ""
    """The served model's name; empty means the served model."""
    temperature: float = Field(1.0, ge=0, le=2)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with at least this total probability."""
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
    """Subtracted from the logit of every token that has been generated."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """Subtracted from the logit of a token each time it has been generated."""
    logit_bias: Biases = {}
    """Added to the logits of these token ids."""
    user: str | None = None
    """Ignored."""
    top_k: int = Field(0, ge=-1)
    """Sample from this many most probable tokens; 0 and -1 mean all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Sample from tokens whose probability is at least this share of the most probable token's."""
    repetition_penalty: float = Field(1.0, gt=0)
    """Above 1, tokens of prompt and completion become less likely."""
    min_tokens: int = Field(0, ge=0)
    """Generate at least this many tokens."""
    ignore_eos: bool = False
    """Continue after the end-of-text token."""
    stop_token_ids: list[int] = Field([], max_length=64, fail_fast=True)
    """Token ids that end a choice."""
    include_stop_str_in_output: bool = False
    """Return the stop string, too."""
    return_token_ids: bool = False
    """Add `token_ids` and `prompt_token_ids` to each choice."""
    response_format: ResponseFormat | None = None
    """The form of the text: JSON, or JSON that is valid under a schema."""
    guided_json: SchemaText = None
    """A JSON schema under which the text must be valid."""
    guided_regex: str | None = None
    """A regular expression that must match the whole text."""
    guided_choice: Choices | None = None
    """Strings of which the text must be one."""
    guided_grammar: str | None = None
    """A grammar that the text must match, in Lark's notation or in EBNF."""
    structured_outputs: StructuredOutputs | None = None
    """The same four, as newer clients of vLLM send them."""
    fork_ratio: float | None = Field(None, ge=1)
    """r, the streams per token that the fork budget allows; by default the checkpoint's κ/L."""
    fork_selection: Literal["causal", "dynamic", "fixed"] = "causal"
    """The selection rule (SPEC.md)."""
    return_fork_counts: bool = False
    """Add `fork_counts` to each choice."""
    fork_bias: list[ForkBiasEntry] = Field([], max_length=MAX_FORK_BIASES, fail_fast=True)
    """Shift, force or forbid the forks of single tokens."""
    return_fork_scores: bool = False
    """Add `fork_scores` to each choice."""


class CompletionRequest(GenerationRequest):
    """Body of POST /v1/completions."""

    prompt: Prompt = ""
    """Text or token ids, one or many; by default the end-of-text token."""
    max_tokens: int = Field(16, ge=0, le=INT64 - 1)
    """Most tokens generated for each choice; 0 only scores the prompt."""
    best_of: int | None = None
    """Compute this many choices for each prompt, and return the n of highest mean log-probability."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Return log-probabilities of each chosen token and of this many most probable ones."""
    echo: bool = False
    """Return the prompt before the completion."""
    suffix: str | None = None
    """Not supported."""

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """The prompts, each a text or token ids."""
        single = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast("Sequence[str | Sequence[int]]", [self.prompt] if single else self.prompt)

    @property
    def choices_per_prompt(self) -> int:
        """Number of choices that are computed for each prompt, of which `n` are returned."""
        return self.n if self.best_of is None else self.best_of


class LoadRequest(RequestBody):
    """Body of POST /admin/load."""

    checkpoint: str = Field(min_length=1, max_length=4096)
    """The folder of the checkpoint on the server's machine, or a hub id: org/name[@revision]."""


class TokenizeRequest(RequestBody):
    """Body of POST /tokenize."""

    prompt: Text
    """The text to tokenize."""
    add_special_tokens: bool = True
    """Accepted for clients of other servers; this tokenizer adds none."""


class DetokenizeRequest(RequestBody):
    """Body of POST /detokenize."""

    tokens: list[int] = Field(fail_fast=True)
    """The token ids to decode."""


Json = dict[str, Any]
"""A JSON object of an answer."""
