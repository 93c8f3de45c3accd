"""Models with random weights: ours of the 124M shape, and transformers' regular GPT-2 of the same shape."""

from tempfile import TemporaryDirectory
from typing import Any

import torch

from thoughtbubbles.model import ModelConfig, Thoughtbubbles, Tokenizer


def shape_124m(block_size: int) -> ModelConfig:
    """Return the 124M shape: 12 layers, D = 768, 12 heads, V = 50,304, forks before layers 3, 7, 11, κ = 2L."""
    return ModelConfig(
        vocab_size=50_304, block_size=block_size, max_block_size=2 * block_size, n_layer=12, n_head=12, n_embd=768,
        fork_layers=(3, 7, 11),
    )  # fmt: skip


def random_model(block_size: int, device: str, dtype: torch.dtype) -> Thoughtbubbles:
    """Return a model of the 124M shape."""
    torch.manual_seed(0)
    with torch.device(device):
        return Thoughtbubbles(shape_124m(block_size)).eval().to(dtype)


def regular_peer(config: ModelConfig, device: str, dtype: torch.dtype) -> Any | None:  # noqa: ANN401 - transformers' own
    """Return transformers' GPT-2 of the same shape, without forks; None if transformers is not installed."""
    try:
        import transformers  # noqa: PLC0415 - optional
    except ImportError:
        return None
    transformers.logging.set_verbosity_error()
    peer = transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=max(1024, config.block_size), n_embd=config.n_embd,
        n_layer=config.n_layer, n_head=config.n_head, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.device(device):
        return transformers.GPT2LMHeadModel(peer).eval().to(dtype)


def ctranslate2_peers(peer: Any, threads: int) -> dict[str, Any]:  # noqa: ANN401 - both libraries' own
    """Return CTranslate2's generators of transformers' GPT-2, by their type; none if it is not installed.

    Their tokens are named by decimal numbers.
    """
    try:
        import ctranslate2  # noqa: PLC0415 - optional
        from ctranslate2.converters.transformers import GPT2Loader  # noqa: PLC0415
    except ImportError:
        return {}
    spec = GPT2Loader().get_model_spec(peer)
    spec.register_vocabulary([str(i) for i in range(peer.config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"  # noqa: S105 - no password
    spec.validate()
    spec.optimize(quantization="float32")
    with TemporaryDirectory() as folder:
        spec.save(folder)
        return {
            dtype: ctranslate2.Generator(folder, "cpu", compute_type=dtype, intra_threads=threads)
            for dtype in ("float32", "int8")
        }


def numbered_tokens(vocab_size: int) -> Tokenizer:
    """Return a tokenizer for random weights: its tokens are the bytes, then decimal numbers."""
    ranks = {bytes([i]) if i < 256 else f" {i}".encode(): i for i in range(vocab_size - 1)}
    return Tokenizer(ranks, "numbered")


def random_prompts(config: ModelConfig, prompts: int, tokens: int) -> list[list[int]]:
    """Return prompts of random tokens."""
    return torch.randint(256, config.vocab_size - 1, (prompts, tokens)).tolist()
