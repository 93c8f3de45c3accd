"""The model as transformers' `AutoConfig` and `AutoModelForCausalLM` make it, and its cache."""

from pathlib import Path
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from thoughtbubbles.model.config import ModelConfig
from thoughtbubbles.model.huggingface.cached import StreamCache, can_cache
from thoughtbubbles.model.selection import Rule, Selection
from thoughtbubbles.model.transformer import Thoughtbubbles

FILE = "modeling_thoughtbubbles.py"
"""The name of this code in a folder of Hugging Face."""
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What this version of transformers calls the cache in a model's output."""


class ThoughtbubblesConfig(PretrainedConfig):
    """A checkpoint's config.json. `model` has the settings of `ModelConfig`.

    `rule` and `ratio` are those of a forward pass that names none: `causal`, and the streams per token of its training.
    """

    model_type = "thoughtbubbles"
    keys_to_ignore_at_inference = ("cache", "past_key_values")

    def __init__(
        self,
        model: dict[str, Any] | None = None,
        rule: Rule = "causal",
        ratio: float | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,  # the model has no second tensor to tie
        **kwargs: Any,
    ) -> None:
        self.model = model or {}
        self.rule = rule
        self.ratio = ratio
        self.use_cache = use_cache
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)

    @property
    def vocab_size(self) -> int:
        """V, with padding."""
        return int(self.model["vocab_size"])

    @property
    def hidden_size(self) -> int:
        """D."""
        return int(self.model["n_embd"])

    @property
    def num_hidden_layers(self) -> int:
        """The number of layers."""
        return int(self.model["n_layer"])

    @property
    def num_attention_heads(self) -> int:
        """N."""
        return int(self.model["n_head"])

    @property
    def max_position_embeddings(self) -> int:
        """L: tokens of a training block. Longer texts are computed too."""
        return int(self.model["block_size"])


class ThoughtbubblesCache(Cache):
    """The cache of `generate`: earlier tokens of a batch under the causal rule and one budget.

    Its first use sets its batch size and budget.
    """

    is_linear = (False,)  # transformers then says how many tokens of a text it does not have

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.streams: StreamCache | None = None
        self.seen = 0
        """Cached positions of `input_ids`, padding included."""

    def extend(self, model: Thoughtbubbles, ids: Tensor, mask: Tensor, selection: Selection) -> Tensor:
        """Return the logits (B,T,V) of new tokens `ids` (B,T), those where `mask` is 1, and cache them.

        Raises `ValueError` if the batch size or the budget is not that of the cached tokens.
        """
        if self.streams is None:
            self.streams = StreamCache(selection, len(ids), ids.device)
        if len(ids) != len(self.streams.tokens):
            raise ValueError(f"the cache has a batch of {len(self.streams.tokens)} texts, input_ids has {len(ids)}")
        if selection != self.streams.selection:
            ratio = self.streams.selection.max_block_size / self.streams.selection.block_size
            raise ValueError(f"ratio must be that of the cached tokens, {ratio:g}, or the text be computed again")
        order, ids = tokens_first(ids, mask)
        logits = model.readout(self.streams.extend(model, ids, mask.sum(1)))
        self.seen += ids.shape[1]
        return restore(logits, order)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002
        """Return the cached positions of `input_ids`."""
        return self.seen

    def reset(self) -> None:
        """Forget all tokens."""
        self.streams, self.seen = None, 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let row i continue what row `beam_idx[i]` has cached."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        if self.streams is not None:
            self.streams.select_rows(indices.to(self.streams.tokens.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.streams is not None:
            rows = torch.arange(len(self.streams.tokens), device=self.streams.tokens.device)
            self.streams.select_rows(rows.repeat_interleave(repeats))

    def crop(self, *_args: int) -> NoReturn:
        """Raise `ValueError`: the cache does not know which streams the last tokens have."""
        raise ValueError("a ThoughtbubblesCache cannot be cropped: compute the shorter text again")


class ThoughtbubblesForCausalLM(PreTrainedModel, GenerationMixin):
    """A `Thoughtbubbles` whose tensors have the names of its checkpoint.

    `rule` and `ratio` select the survivors of forks: `causal`, `dynamic`, `fixed` or `blockwise`, and the streams per
    token that the budget allows. Only `causal` generates with a cache; the others recompute the text for every token.
    """

    config_class = ThoughtbubblesConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ("Trunk",)  # one device has all layers
    _is_stateful = True  # transformers refuses to guess tokens ahead, since the cache cannot be cropped
    code: ClassVar[str | None] = None
    """What `save_pretrained` writes as `FILE`; None if transformers loaded the class from that file, and copies it."""

    def __init__(self, config: ThoughtbubblesConfig) -> None:
        super().__init__(config)
        core = Thoughtbubbles(ModelConfig.from_dict(config.model))
        self.transformer = core.transformer
        self.__dict__["core"] = core  # not a submodule: each tensor has one name
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as `Thoughtbubbles` drew them."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """Let `generate` make no cache: `forward` does."""
        return False

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.transformer.wte

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.transformer.wte = value

    def get_output_embeddings(self) -> None:
        """Return None: the output uses the token embedding."""

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *_args: Any, **_settings: Any) -> nn.Module:
        """Return the token embedding; raise `ValueError` for another number of tokens than it has."""
        if new_num_tokens not in (None, self.config.vocab_size):
            raise ValueError(f"the vocabulary has {self.config.vocab_size} rows and cannot be resized")
        return self.transformer.wte

    def save_pretrained(self, save_directory: str | Path, *args: Any, **settings: Any) -> None:
        """Write a folder that `from_pretrained` and, once the tokenizer is saved too, `thoughtbubbles serve` load."""
        super().save_pretrained(save_directory, *args, **settings)
        if self.code is not None:
            Path(save_directory, FILE).write_text(self.code, encoding="utf-8")

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Return the arguments of the next forward pass: with a cache, the tokens that it does not have."""
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        if cache is not None:
            new = input_ids.shape[1] if next_sequence_length is None else next_sequence_length
            if attention_mask is not None:
                new = attention_mask.shape[1] - cache.get_seq_length()
            if not 1 <= new <= input_ids.shape[1]:
                raise ValueError(
                    f"the cache has {cache.get_seq_length()} tokens, input_ids has {input_ids.shape[1]}: give the whole"
                    " text, or the new tokens and an attention_mask of the whole text"
                )
            input_ids = input_ids[:, -new:]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "cache": cache}
        return inputs | {name: kwargs[name] for name in ("rule", "ratio", "use_cache") if name in kwargs}

    def forward(  # noqa: PLR0917
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        rule: Rule | None = None,
        ratio: float | None = None,
        cache: ThoughtbubblesCache | None = None,
        past_key_values: ThoughtbubblesCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Return logits (B,T,V), log-probabilities if `averaging` is `logit`, the loss of `labels`, and the cache.

        Tokens whose `attention_mask` is 0 are padding, anywhere; their logits mean nothing. `cache` has the tokens
        before `input_ids`, and `attention_mask` is that of both. `past_key_values` is its older name. Raises
        `ValueError` for a cache of another class, batch size, rule or budget, and for a mask of another shape.
        """
        rule, ratio = rule or self.config.rule, self.config.ratio if ratio is None else ratio
        selection = Selection.of(self.core.config, rule, ratio)
        cache = past_key_values if cache is None else cache
        if cache is not None:
            require_usable(cache, selection)
        elif (self.config.use_cache if use_cache is None else use_cache) and can_cache(self.core.config, rule):
            cache = ThoughtbubblesCache()
        mask = new_tokens(input_ids, attention_mask, 0 if cache is None else cache.seen)
        if cache is not None:
            logits = cache.extend(self.core, input_ids, mask, selection)
        else:
            order, ids = tokens_first(input_ids, mask)
            logits = restore(self.core(ids, rule=rule, ratio=ratio, lengths=mask.sum(1)), order)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
        return output if return_dict else output.to_tuple()


def require_usable(cache: object, selection: Selection) -> None:
    """Raise `ValueError` unless `cache` is of this model and the rule is the one that it is for."""
    if not isinstance(cache, ThoughtbubblesCache):
        raise ValueError(f"the cache must be a ThoughtbubblesCache, not a {type(cache).__name__}")
    if selection.rule != "causal":
        raise ValueError(f"a cache is for the rule causal, not {selection.rule}: pass use_cache=False")


def new_tokens(ids: Tensor, attention_mask: Tensor | None, seen: int) -> Tensor:
    """Return the mask (B,T) int64 of `ids` (B,T), the last columns of `attention_mask`, which has `seen` before them.

    Raises `ValueError` if its shape is another, or a row has no token.
    """
    if attention_mask is None:
        return torch.ones_like(ids, dtype=torch.int64)
    expected = [ids.shape[0], seen + ids.shape[1]]
    if list(attention_mask.shape) != expected:
        raise ValueError(f"attention_mask must have the shape {expected}, not {list(attention_mask.shape)}")
    if not attention_mask.any(1).all():
        raise ValueError("a row of attention_mask has no token: start an empty text with the end-of-text token")
    return attention_mask[:, seen:].to(torch.int64)


def tokens_first(ids: Tensor, mask: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the order (B,T) of columns with the tokens first and the padding last, and `ids` (B,T) in it.

    The order is None if no column is padding.
    """
    if bool(mask.all()):
        return None, ids
    order = mask.argsort(dim=1, descending=True, stable=True)
    return order, ids.gather(1, order)


def restore(logits: Tensor, order: Tensor | None) -> Tensor:
    """Return logits (B,T,V) in the order of the input, from the order of `tokens_first`."""
    if order is None:
        return logits
    return torch.empty_like(logits).scatter(1, order[:, :, None].expand_as(logits), logits)
