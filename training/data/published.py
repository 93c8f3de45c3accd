"""The published data sets that `prepare` knows by name, read through the `datasets` library.

What was published as one text is read as it is; questions and conversations are written out as the text that a model is
asked to continue: lm-evaluation-harness's words for GSM8K and MMLU, a line of `User:` or `Assistant:` for a turn.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training.data.documents import Documents

if TYPE_CHECKING:
    from datasets import Dataset

Row = Mapping[str, Any]


class Split(NamedTuple):
    """Where a part is: the name of a split, or a pattern of files in the repository."""

    name: str = "train"
    files: str | None = None


@dataclass(frozen=True, kw_only=True)
class PublishedSet:
    """One data set on the Hugging Face hub."""

    repository: str
    """Owner and name on the hub."""
    text: Callable[[Row], str]
    """A row of it as one document."""
    configuration: str | None = None
    """Which of its configurations."""
    train: Split = field(default_factory=Split)
    """What to learn from."""
    val: Split | None = None
    """What was published to validate on; where there is nothing, a share of the documents is held out."""


def plain_text(row: Row) -> str:
    """A document as it was published."""
    return str(row["text"])


def conversation(row: Row) -> str:
    """Turns, each after the name of its role, with an empty line between two."""
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content'].strip()}" for turn in row["messages"])


def worked_answer(row: Row) -> str:
    """A question, its steps, and after `####` the number that is asked for, as GSM8K writes it."""
    return f"Question: {row['question'].strip()}\nAnswer: {' '.join(row['steps'])}\n#### {row['answer']}"


def multiple_choice(row: Row) -> str:
    """A question, its choices under letters, and the letter of the right one."""
    choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip("ABCD", row["choices"], strict=True))
    return f"{row['question'].strip()}\n{choices}\nAnswer: {'ABCD'[row['answer']]}"


# The first two are named by their files: the library reads no repository that has, or had, a script of its own.
PUBLISHED = {
    "openwebtext": PublishedSet(
        repository="Skylion007/openwebtext", text=plain_text, train=Split(files="plain_text/train-*.parquet")
    ),
    "pes2o": PublishedSet(
        repository="allenai/peS2o",
        text=plain_text,
        train=Split(files="data/v2/train-*.json.gz"),
        val=Split(files="data/v2/validation-*.json.gz"),
    ),
    "fineweb": PublishedSet(repository="HuggingFaceFW/fineweb", configuration="sample-10BT", text=plain_text),
    "smoltalk": PublishedSet(
        repository="HuggingFaceTB/smoltalk", configuration="all", text=conversation, val=Split("test")
    ),
    "gsm8k-aug": PublishedSet(repository="whynlp/gsm8k-aug", text=worked_answer, val=Split("validation")),
    "mmlu": PublishedSet(
        repository="cais/mmlu",
        configuration="all",
        text=multiple_choice,
        train=Split("auxiliary_train"),
        val=Split("validation"),
    ),
}


class PublishedDocuments:
    """One part of a published set. What is loaded lies in the library's cache and is read from there."""

    def __init__(self, published: PublishedSet, split: Split, folder: Path | None) -> None:
        """`folder` is a copy of the repository, read in place of the hub. `ValueError` when neither can be had."""
        self._text = published.text
        self._name = " ".join(filter(None, [published.repository, published.configuration, split.files or split.name]))
        self._rows = _load(published, split, folder)
        self.total: int | None = len(self._rows)

    def read(self, first: int = 0) -> Iterator[str]:
        """As `Documents.read`."""
        for number, row in enumerate(self._rows.skip(first), first):
            try:
                yield self._text(row)
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                raise ValueError(f"{self._name}, row {number}: not of this set's schema ({error!r})") from error

    def sources(self) -> dict[str, str]:
        """The split, and the library's fingerprint of its files."""
        return {self._name: self._rows._fingerprint}  # noqa: SLF001 - the library gives it under no other name


def published_documents(name: str, folder: Path | None) -> dict[str, Documents]:
    """The parts of the set `name`: `train`, and `val` where one was published. `ValueError` when they cannot be had."""
    published = PUBLISHED[name]
    parts: dict[str, Documents] = {"train": PublishedDocuments(published, published.train, folder)}
    if published.val is not None:
        parts["val"] = PublishedDocuments(published, published.val, folder)
    return parts


def _load(published: PublishedSet, split: Split, folder: Path | None) -> "Dataset":
    try:
        from datasets import load_dataset  # noqa: PLC0415 - the extra `datasets`
    except ModuleNotFoundError:
        raise ValueError("published sets need the extra: pip install 'thoughtbubbles[datasets]'") from None
    try:
        if split.files is None:
            return load_dataset(str(folder or published.repository), published.configuration, split=split.name)
        builder = "parquet" if split.files.endswith(".parquet") else "json"
        root = folder or f"hf://datasets/{published.repository}"
        return load_dataset(builder, data_files=f"{root}/{split.files}", split="train")
    except Exception as error:  # its network layers, formats and caches raise what they like
        where = folder or f"{published.repository} from the Hugging Face hub"
        hint = "" if folder else ". Without a network, give a copy of that repository with --from FOLDER"
        raise ValueError(f"{where}: could not be loaded ({type(error).__name__}: {error}){hint}") from error
