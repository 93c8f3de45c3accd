"""Say where in its clause each token stands whose forks the study keeps, by a tagger.

    python -m experiments.language.places [--data data/language] [--out benchmarks/results/language-places.txt]

Needs the extra `tagger`. The output has a letter a token (`PLACES`), and none of the text.
"""

import argparse
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from benchmarks.header import header
from experiments.language.measure import Evaluation
from experiments.runner.plan import read_study
from thoughtbubbles.model import Tokenizer
from thoughtbubbles.training.data.token_file import read_tokenizer, read_tokens
from thoughtbubbles.training.measures import packed_windows

PLACES: Mapping[str, str] = {
    "S": "first word of a sentence",
    "C": "word that opens a clause: that, because, who, when",
    "A": "and, but, or",
    "W": "noun, verb, adjective, adverb or number",
    "F": "other word",
    "I": "rest of a word of several tokens",
    "P": "punctuation in a sentence",
    "E": "punctuation that ends one",
    "-": "line break, or end of a text",
}
"""The letter of each place, and what it says. A token of a blank and a word stands where the word does."""
RESULT = Path("benchmarks/results/language-places.txt")
OPENING = ("CJS", "CJT", "PNQ", "DTQ", "AVQ")
"""Tags (C5, of the British National Corpus) of words that open a clause: conjunctions, relative and question words."""
CONTENT = ("NN", "NP", "VV", "AJ", "AV0", "CRD", "ORD")
"""Beginnings of the tags of nouns, verbs but auxiliaries, adjectives, adverbs and numbers."""
ENDS = frozenset(".!?")
ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "st", "vol", "no", "fig", "etc"})
"""Words whose full stop ends no sentence; nor does that of a single letter."""
WORD = re.compile(r"\w+(?:[’'-]\w+)*|[^\w\s]|\n\s*\n")

Tag = Callable[[Sequence[str]], Sequence[str]]
"""Returns the tag of each word of a sentence."""


def main() -> None:
    """Write the places of the kept windows."""
    args = _arguments()
    study = read_study(args.study, Evaluation)
    folder = args.data / study.evaluation.report
    length, tokenizer = study.base["block_size"], read_tokenizer(folder)
    windows = packed_windows(read_tokens(folder, "val"), length)[: study.evaluation.windows]
    ids = [int(i) for window in windows for i in window.ids[:-1]]
    tag = _tagger()
    found = "".join(places(tokens, tag) for tokens in _texts(ids, tokenizer))
    lines = [found[start : start + length] for start in range(0, len(found), length)]
    args.out.write_text("\n".join([header(), *lines, ""]), encoding="utf-8")


def read_places(path: Path = RESULT) -> str:
    """Return the places of all kept tokens, a letter each."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "".join(line for line in lines if not line.startswith("#"))


def places(tokens: Sequence[bytes], tag: Tag) -> str:
    """Return the place of each token of one text, a letter each."""
    text = b"".join(tokens).decode(errors="surrogateescape")
    at = [0, *accumulate(len(char.encode(errors="surrogateescape")) for char in text)]
    letters = ["-"] * at[-1]  # of each byte
    for start, end, letter in _words(text, tag):
        letters[at[start] : at[end]] = [letter, *"I" * (at[end] - at[start] - 1)]
    starts = [0, *accumulate(map(len, tokens))]
    visible = (len(token) - len(token.lstrip()) for token in tokens)
    firsts = [start + skip for start, skip in zip(starts, visible, strict=False)]
    return "".join(letters[first] if first < end else "-" for first, end in zip(firsts, starts[1:], strict=True))


def _words(text: str, tag: Tag) -> Iterator[tuple[int, int, str]]:
    """Yield where each word or mark of a text starts and ends, and the place of its first token."""
    for sentence in _sentences(text):
        words = [match.group() for match in sentence]
        begun = False
        for match, name in zip(sentence, tag(words), strict=True):
            letter = _place(match.group(), name, first=not begun)
            begun = begun or letter == "S"
            yield match.start(), match.end(), letter


def _sentences(text: str) -> Iterator[list[re.Match[str]]]:
    """Yield the words and marks of each sentence. Blank lines end one, too."""
    sentence: list[re.Match[str]] = []
    for match in WORD.finditer(text):
        word = match.group()
        ended = bool(sentence) and _ends(sentence) and word[0].isalnum()
        if (ended or word.isspace()) and sentence:
            yield sentence
            sentence = []
        sentence += [] if word.isspace() else [match]
    if sentence:
        yield sentence


def _ends(sentence: Sequence[re.Match[str]]) -> bool:
    """Return whether a sentence ends with what it has: a final mark, and perhaps quotes and brackets after it."""
    words = [match.group() for match in sentence]
    while len(words) > 1 and not words[-1][0].isalnum() and words[-1] not in ENDS:
        words.pop()
    before = words[-2] if len(words) > 1 else ""
    abbreviated = words[-1] == "." and (len(before) == 1 or before.lower() in ABBREVIATIONS)
    return words[-1] in ENDS and not abbreviated


def _place(word: str, tag: str, *, first: bool) -> str:
    if not word[0].isalnum():
        return "E" if word in ENDS else "P"
    if first:
        return "S"
    if tag.startswith(OPENING):
        return "C"
    if tag.startswith("CJC"):
        return "A"
    return "W" if tag.startswith(CONTENT) else "F"


def _texts(ids: Sequence[int], tokenizer: Tokenizer) -> Iterator[list[bytes]]:
    """Yield the bytes of the tokens of each document, with those of its end-of-text token, which are none."""
    text: list[bytes] = []
    for i in ids:
        if i == tokenizer.end_of_text and text:
            yield text
            text = []
        text.append(b"" if i == tokenizer.end_of_text else tokenizer.token_bytes(i))
    yield text


def _tagger() -> Tag:
    from HanTa.HanoverTagger import HanoverTagger  # noqa: PLC0415 - only this command needs it

    tagger = HanoverTagger("morphmodel_en.pgz")
    return lambda words: [tag for _, _, tag in tagger.tag_sent(words)]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--study", type=Path, default=Path("experiments/language/study.toml"))
    parser.add_argument("--data", type=Path, default=Path("data/language"))
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


if __name__ == "__main__":
    main()
