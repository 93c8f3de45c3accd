"""Register the model with Hugging Face's transformers: importing this loads checkpoints without remote code.

    import thoughtbubbles.hf
    model = transformers.AutoModelForCausalLM.from_pretrained("checkpoints/thoughtbubbles-11m")

A checkpoint that `thoughtbubbles export` did not write has to be exported first.
"""

try:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
except ImportError as missing:
    raise ImportError("thoughtbubbles.hf needs transformers: pip install 'transformers>=5'") from missing

from thoughtbubbles.model.huggingface.modeling import (
    ThoughtbubblesCache,
    ThoughtbubblesConfig,
    ThoughtbubblesForCausalLM,
)
from thoughtbubbles.model.huggingface.source import modeling_source

__all__ = ["ThoughtbubblesCache", "ThoughtbubblesConfig", "ThoughtbubblesForCausalLM"]

ThoughtbubblesForCausalLM.code = property(lambda _: modeling_source())  # type: ignore[assignment]  # made when it is saved
AutoConfig.register(ThoughtbubblesConfig.model_type, ThoughtbubblesConfig)
AutoModelForCausalLM.register(ThoughtbubblesConfig, ThoughtbubblesForCausalLM)
AutoTokenizer.register(ThoughtbubblesConfig, fast_tokenizer_class=PreTrainedTokenizerFast)
