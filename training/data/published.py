"""The published data sets that `prepare` knows by name, read with the `datasets` library.

Plain texts are read unchanged; `rows` turns questions and conversations into text. Names, configurations, files and
fields are those of the sets' cards and files at https://huggingface.co/datasets/REPOSITORY:

- openwebtext: `plain_text/train-00000-of-00080.parquet` and so on, `text`.
- pes2o: `data/v2/train-00000-of-00020.json.gz` and so on, two files of `validation` with papers after 2022-12-01;
  `text` beside `added`, `created`, `id`, `source`, `version`. Its loader `peS2o.py` names the files; `datasets` 4 runs
  no loaders.
- fineweb: configuration `sample-10BT`, `sample/10BT/*.parquet`, `text`; only `train`.
- smoltalk: configuration `all`, nine files of `train`, one of `test`; `messages`, each of `content` and `role`.
- gsm8k-aug: `train` of 385,620, `validation` of 500, `test` of 1,319; `question`, `steps`, a list of `<<6*7=42>>`, and
  `answer`.
- mmlu: configuration `all`, `auxiliary_train` of 99,842, `validation` of 1,531, `dev`, `test`; `question`, `subject`,
  `choices`, four of them, and `answer`, 0 to 3.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from thoughtbubbles.model.extras import install_command
from thoughtbubbles.training.data.documents import Documents
from thoughtbubbles.training.data.rows import (
    Document,
    Row,
    conversation,
    multiple_choice,
    plain_text,
    require_characters,
    worked_answer,
)

if TYPE_CHECKING:
    from datasets import Dataset


class Split(NamedTuple):
    """The location of a part: the name of a split, or a pattern of files in the repository."""

    name: str = "train"
    files: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """One data set on the Hugging Face hub."""

    repository: str
    """Owner and name on the hub."""
    document: Callable[[Row], Document]
    """Converts a row to a document."""
    configuration: str | None = None
    train: Split = field(default_factory=Split)
    val: Split | None = None
    """None: a share of the documents of `train` is held out."""


# The first two are given as files, because the library does not read repositories that have, or had, a loading script.
PUBLISHED = {
    "openwebtext": PublishedSet(
        repository="Skylion007/openwebtext", document=plain_text, train=Split(files="plain_text/train-*.parquet")
    ),
    "pes2o": PublishedSet(
        repository="allenai/peS2o",
        document=plain_text,
        train=Split(files="data/v2/train-*.json.gz"),
        val=Split(files="data/v2/validation-*.json.gz"),
    ),
    "fineweb": PublishedSet(repository="HuggingFaceFW/fineweb", configuration="sample-10BT", document=plain_text),
    "smoltalk": PublishedSet(
        repository="HuggingFaceTB/smoltalk", configuration="all", document=conversation, val=Split("test")
    ),
    "gsm8k-aug": PublishedSet(repository="whynlp/gsm8k-aug", document=worked_answer, val=Split("validation")),
    "mmlu": PublishedSet(
        repository="cais/mmlu",
        configuration="all",
        document=multiple_choice,
        train=Split("auxiliary_train"),
        val=Split("validation"),
    ),
}


class PublishedDocuments:
    """One part of a published set, read from the library's cache."""

    def __init__(self, published: PublishedSet, split: Split, folder: Path | None) -> None:
        """Load the part from the hub, or from `folder`, a copy of the repository. Raise `ValueError` if that fails."""
        self._document = published.document
        self._name = " ".join(filter(None, [published.repository, published.configuration, split.files or split.name]))
        self._rows = _load(published, split, folder)
        self.total: int | None = len(self._rows)

    def read(self, first: int = 0) -> Iterator[Document]:
        """As `Documents.read`."""
        for number, row in enumerate(self._rows.skip(first), first):
            try:
                document = self._document(row)
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                raise ValueError(f"{self._name}, row {number}: not of this set's schema ({error!r})") from error
            yield require_characters(document, f"{self._name}, row {number}")

    def sources(self) -> dict[str, str]:
        """Return the split, and the library's fingerprint of its files."""
        return {self._name: self._rows._fingerprint}  # noqa: SLF001 - the library has no public name for it


def published_documents(name: str, folder: Path | None) -> dict[str, Documents]:
    """Return the parts of the set `name`: `train`, and `val` if published. Raise `ValueError` if loading fails."""
    if folder is not None and not folder.is_dir():  # `datasets` would look for a repository of that name on the hub
        raise ValueError(f"from: {folder} is not a folder")
    published = PUBLISHED[name]
    parts: dict[str, Documents] = {"train": PublishedDocuments(published, published.train, folder)}
    if published.val is not None:
        parts["val"] = PublishedDocuments(published, published.val, folder)
    return parts


def _load(published: PublishedSet, split: Split, folder: Path | None) -> "Dataset":
    try:
        from datasets import disable_progress_bars, load_dataset  # noqa: PLC0415 - the extra `datasets`
    except ModuleNotFoundError:
        raise ValueError(f"published sets need packages: {install_command('datasets')}") from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        if split.files is None:
            return load_dataset(str(folder or published.repository), published.configuration, split=split.name)
        builder = "parquet" if split.files.endswith(".parquet") else "json"
        root = folder or f"hf://datasets/{published.repository}"
        return load_dataset(builder, data_files=f"{root}/{split.files}", split="train")
    except Exception as error:  # its network, format and cache layers can raise anything
        where = folder or f"{published.repository} from the Hugging Face hub"
        hint = "" if folder else ". Without a network, give a copy of that repository with --from FOLDER"
        raise ValueError(f"{where}: could not be loaded ({type(error).__name__}: {error}){hint}") from error
