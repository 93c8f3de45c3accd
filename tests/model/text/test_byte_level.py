"""A tokenizer.json is read as ranks, or refused where it would give other ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thoughtbubbles.model import Tokenizer
from thoughtbubbles.model.huggingface.tokenizer import tokenizer_json

Content = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer_json(tokenizer), encoding="utf-8")
    return path


def test_ranks_are_read_back(path: Path, tokenizer: Tokenizer) -> None:
    found = Tokenizer.from_tokenizer_json(path)
    assert found.vocab_size == tokenizer.vocab_size
    assert [found.token_bytes(i) for i in range(found.vocab_size)] == [
        tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)
    ]


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("model", lambda content: content["model"].update(type="WordPiece")),
        ("model", lambda content: content["model"].update(ignore_merges=False)),
        ("normalizer", lambda content: content.update(normalizer={"type": "NFC"})),
        ("pre_tokenizer", lambda content: content.update(pre_tokenizer=None)),
        ("pre_tokenizer", lambda content: content["pre_tokenizer"].update(add_prefix_space=True)),
        ("added_tokens", lambda content: content["added_tokens"].append({"content": "<pad>", "id": 262})),
        ("added_tokens", lambda content: content["model"]["vocab"].update(zz=261)),
        ("vocab", lambda content: content["model"]["vocab"].update(a=5)),
        ("merges", lambda content: content["model"]["merges"].pop()),
    ],
)
def test_what_would_give_other_ids_is_refused(path: Path, part: str, change: Callable[[Content], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=f"tokenizer.json: {part} gives other ids"):
        Tokenizer.from_tokenizer_json(path)


@pytest.mark.parametrize(
    "content",
    [{}, {"model": 1, "pre_tokenizer": 2}, {"model": {"type": "BPE", "ignore_merges": True, "vocab": {"東": 0}},
                                            "pre_tokenizer": {}, "normalizer": None}],
)  # fmt: skip
def test_another_file_is_refused(path: Path, content: Content) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Tokenizer.from_tokenizer_json(path)
