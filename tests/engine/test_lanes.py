"""What a step reads of its requests lies in one block of memory: columns cover it, apart from each other."""

import torch

from thoughtbubbles.engine.cuda.lanes import Columns, Lanes, PrefillInputs

CPU = torch.device("cpu")
SIZES = {"B": 3, "T": 5, "G": 2, "P": 4}


def columns_of(columns: Columns) -> dict[str, torch.Tensor]:
    return {name: getattr(columns, name) for name in columns.numpy()}


def test_columns_cover_the_memory_without_overlap() -> None:
    for columns in (Lanes.zeros(CPU, L=3, G=2, P=4), PrefillInputs.zeros(CPU, **SIZES)):
        own = columns_of(columns)
        assert sum(column.numel() for column in own.values()) == columns.memory.numel()
        for value, column in enumerate(own.values(), start=1):
            assert not column.any(), "no other column has written here"
            column.fill_(value)
        assert (columns.memory > 0).all()


def test_shapes_are_those_that_the_letters_say() -> None:
    shapes = {name: tuple(column.shape) for name, column in columns_of(PrefillInputs.zeros(CPU, **SIZES)).items()}
    per_slot, per_token = dict.fromkeys(("lane", "first", "last", "count", "length"), (3,)), (5,)
    tokens = dict.fromkeys(("ids", "request", "position", "fork_budget", "scored", "target", "top"), per_token)
    assert shapes == {**per_slot, **tokens, "streams": (2, 3), "table": (3, 4), "live": (1,)}


def test_arrays_share_memory_with_what_is_copied() -> None:
    inputs = PrefillInputs.zeros(CPU, **SIZES)
    inputs.numpy()["table"][1, 2] = 7
    assert inputs.table[1, 2] == 7
    assert inputs.memory.sum() == 7
