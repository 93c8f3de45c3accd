"""`thoughtbubbles export`: write a checkpoint as a folder that Hugging Face's tools read too."""

import argparse
from pathlib import Path

from thoughtbubbles.model.checkpoint.argument import CHECKPOINT_HELP
from thoughtbubbles.model.checkpoint.checks import MODEL_TYPE
from thoughtbubbles.model.checkpoint.hub import CARD_FILE, locate
from thoughtbubbles.model.checkpoint.read import load_checkpoint, open_checkpoint
from thoughtbubbles.model.checkpoint.weights import DTYPES
from thoughtbubbles.model.checkpoint.write import save_checkpoint
from thoughtbubbles.model.huggingface.source import modeling_source
from thoughtbubbles.model.huggingface.tokenizer import to_json, tokenizer_config, tokenizer_json

MODULE = "modeling_thoughtbubbles"
CLASS = "ThoughtbubblesForCausalLM"


def export_checkpoint(source: str | Path, out: str | Path) -> None:
    """Write the checkpoint `source` to the folder `out`, with the files of Hugging Face's tools beside ours.

    It stays a checkpoint: `load_checkpoint` reads it, with the same weights in the same dtype. A model card, README.md,
    is copied. `out` may be `source`, which is then brought up to date. Raises `CheckpointError` if `source` is not a
    checkpoint, `ValueError` if `out` is a folder that is not, or that holds a folder.
    """
    location = locate(source)
    source = location.instead_of(source)
    _, headers = open_checkpoint(source)
    dtype = DTYPES[headers[0].dtype]
    checkpoint = load_checkpoint(source, dtype=dtype)
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    end = tokenizer.end_of_text
    settings = {
        "model_type": MODEL_TYPE,
        "architectures": [CLASS],
        "auto_map": {"AutoConfig": f"{MODULE}.ThoughtbubblesConfig", "AutoModelForCausalLM": f"{MODULE}.{CLASS}"},
        "dtype": str(dtype).removeprefix("torch."),
    }
    generation = {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    files = {
        f"{MODULE}.py": modeling_source().encode(),
        "generation_config.json": to_json(generation),
        "tokenizer.json": tokenizer_json(tokenizer).encode(),
        "tokenizer_config.json": to_json(tokenizer_config(model.config.block_size, checkpoint.chat_template)),
    }
    if (card := location.folder / CARD_FILE).is_file():
        files[CARD_FILE] = card.read_bytes()
    save_checkpoint(
        out,
        model,
        tokenizer,
        checkpoint.provenance,
        chat_template=checkpoint.chat_template,
        settings=settings,
        files=files,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("out", type=Path, help="the folder to write")


def run(args: argparse.Namespace) -> int:
    """Export; print what was written."""
    export_checkpoint(args.checkpoint, args.out)
    print(f"wrote {args.out}: AutoModelForCausalLM.from_pretrained({str(args.out)!r}, trust_remote_code=True) reads it")
    return 0
