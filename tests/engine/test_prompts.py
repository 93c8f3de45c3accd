"""A prompt may be a text, token ids, or a tensor or an array of them; anything else is refused by name."""

import numpy as np
import pytest
import torch

from thoughtbubbles.engine import Engine, InvalidRequest, SamplingParams
from thoughtbubbles.model import Tokenizer

GREEDY = SamplingParams(max_tokens=5, temperature=0)
IDS = list(b"hello")


@pytest.mark.parametrize(
    "prompt",
    [
        "hello",
        tuple(IDS),
        torch.tensor(IDS),
        torch.tensor(IDS, dtype=torch.int32),
        np.array(IDS, dtype=np.uint16),
        list(np.array(IDS)),
        list(torch.tensor(IDS)),
    ],
    ids=["text", "tuple", "tensor", "int32", "array", "list of numpy", "list of tensors"],
)
def test_every_form_is_the_same_prompt(engine: Engine, prompt: object) -> None:
    expected, found = engine.generate([IDS, prompt], GREEDY)  # type: ignore[list-item]
    assert found.token_ids == expected.token_ids
    engine.add("alone", prompt, GREEDY)  # type: ignore[arg-type]
    engine.step()
    assert engine.stats().prompt_tokens_total == 3 * len(IDS)
    engine.abort_all()


def test_a_matrix_is_a_batch(engine: Engine) -> None:
    rows = [list(b"one"), list(b"two")]
    expected = [each.token_ids for each in engine.generate(rows, GREEDY)]
    for matrix in (torch.tensor(rows), np.array(rows)):
        assert [each.token_ids for each in engine.generate(matrix, GREEDY)] == expected


def test_an_empty_text_is_end_of_text(engine: Engine, tokenizer: Tokenizer) -> None:
    empty, end = engine.generate(["", [tokenizer.end_of_text]], GREEDY)
    assert empty.token_ids == end.token_ids


@pytest.mark.parametrize(
    ("prompt", "found"),
    [
        (None, "NoneType"),
        (5, "int"),
        (b"hello", "bytes"),
        ({1, 2}, "set"),
        ([1.0], "list with an element of type float"),
        (["hello"], "list with an element of type str"),
        ([True], "list with an element of type bool"),
        (torch.tensor([1.0]), "Tensor with an element of type float"),
        (torch.tensor([[1, 2]]), "Tensor with an element of type list"),
        (torch.tensor(1), "Tensor"),
        (np.array(["a"]), "ndarray with an element of type str"),
    ],
)
def test_another_type_is_refused_by_name(engine: Engine, prompt: object, found: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"^prompts\[1\] is of type {found};") as caught:
        engine.generate([[1], prompt], GREEDY)  # type: ignore[list-item]
    assert (caught.value.param, caught.value.code) == ("prompt", "invalid_type")
    with pytest.raises(InvalidRequest, match=rf"^prompt is of type {found};"):
        engine.add("a", prompt, GREEDY)  # type: ignore[arg-type]
    assert not engine.has_work


@pytest.mark.parametrize("prompts", ["hello", b"hello", None, torch.tensor(3)])
def test_prompts_are_a_list(engine: Engine, prompts: object) -> None:
    with pytest.raises(InvalidRequest, match=r"^prompts is of type \w+; put a single prompt into a list"):
        engine.generate(prompts, GREEDY)  # type: ignore[arg-type]


def test_a_byte_that_the_vocabulary_lacks(engine: Engine) -> None:
    engine.tokenizer = Tokenizer({b"a": 0}, "a")
    with pytest.raises(InvalidRequest, match=r"^prompts\[0\] cannot be encoded: the text has a byte"):
        engine.generate(["b"], GREEDY)
