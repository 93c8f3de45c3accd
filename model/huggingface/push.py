"""`thoughtbubbles push`: upload a checkpoint to a hub, as a folder that Hugging Face's tools read too."""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thoughtbubbles.model.checkpoint.argument import CHECKPOINT_HELP
from thoughtbubbles.model.checkpoint.hub import CARD_FILE, check_repository, hub_error, locate
from thoughtbubbles.model.checkpoint.inspection import inspect_checkpoint, page
from thoughtbubbles.model.huggingface.export import export_checkpoint


def push_checkpoint(source: str | Path, repository: str, *, private: bool = False, revision: str | None = None) -> str:
    """Upload the checkpoint `source` to the branch `revision` (main) of a repository, and return the commit's URL.

    The repository `org/name` and the branch are made if they do not exist. The model card is the checkpoint's
    README.md, or a page of its facts. Raises `CheckpointError` if `source` is not a checkpoint, and `ValueError` if
    the hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415 - slow, and for hubs alone

    api = HfApi()
    check_repository(repository)
    location = locate(source)
    with _as_exported(source, location.name) as folder:
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            message = f"Upload {location.name} with thoughtbubbles push"
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message=message
            )
        except Exception as error:  # those of the HTTP client have no common type with the others
            raise ValueError(f"{repository} was not uploaded: {hub_error(error, repository, revision)}") from error
    return str(commit.commit_url)


def model_card(source: str | Path, name: str) -> str:
    """Return a model card with the facts of a checkpoint that has none, under its name."""
    facts = inspect_checkpoint(source)
    head = "---\nlibrary_name: thoughtbubbles\npipeline_tag: text-generation\ntags:\n- thoughtbubbles\n---\n"
    about = "A Thoughtbubbles language model (arXiv 2510.00219). Written by `thoughtbubbles push`, from its files:"
    return f"{head}\n# {name}\n\n{about}\n\n```\n{page(facts)}\n```\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("repository", help="org/name; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to write to; made if it does not exist (main)")


def run(args: argparse.Namespace) -> int:
    """Upload; print the commit's address."""
    print(push_checkpoint(args.checkpoint, args.repository, private=args.private, revision=args.revision))
    return 0


@contextmanager
def _as_exported(source: str | Path, name: str) -> Iterator[Path]:
    """Yield a temporary folder with the checkpoint as `thoughtbubbles export` writes it, and a model card."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "checkpoint"
        export_checkpoint(source, folder)
        if not (card := folder / CARD_FILE).exists():
            card.write_text(model_card(source, name), encoding="utf-8")
        yield folder
