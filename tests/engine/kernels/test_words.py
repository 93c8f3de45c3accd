"""Words that kernels read from the host's memory and write to it."""

import numpy as np
import pytest
import torch

from tests.engine.kernels.conftest import DEVICE
from thoughtbubbles.engine.cuda.kernels.words import WORDS_AT_ONCE, report_words
from thoughtbubbles.engine.cuda.lanes import Lanes
from thoughtbubbles.engine.cuda.staging import BUFFERS, WORDS, Staging


def test_words_are_written_at_offsets_of_a_column() -> None:
    lanes = Lanes.zeros(DEVICE, L=3, G=2, P=4)
    staging = Staging(lanes.memory)
    staging.prepare()
    assert not lanes.memory.any()
    at = lanes.table.storage_offset() + 2 * lanes.table.stride(0) + np.array([0, 3])
    staging.write(at, np.array([5, 6], np.int32))
    assert lanes.table.tolist() == [[0] * 4, [0] * 4, [5, 0, 0, 6]]
    assert lanes.memory.sum() == 11


@pytest.mark.parametrize("count", [1, WORDS, WORDS + 1, (BUFFERS + 1) * WORDS + 7])
def test_as_many_words_as_there_are(count: int) -> None:
    memory = torch.zeros(count + 1, dtype=torch.int32, device=DEVICE)
    order = np.random.default_rng(0).permutation(count)
    Staging(memory).write(order, (order + 1).astype(np.int32))
    assert memory.tolist() == [*range(1, count + 1), 0]


def test_what_is_written_later_does_not_change_what_was_written_before() -> None:
    memory = torch.zeros(100, dtype=torch.int32, device=DEVICE)
    staging = Staging(memory)
    staging.prepare()  # which takes longer than what keeps the device busy
    busy = torch.zeros((2048, 2048), device=DEVICE)
    for _ in range(20 if DEVICE.type == "cuda" else 1):  # so that the host is ahead
        busy = busy @ busy
    for i in range(100):
        staging.write(np.array([i, 0]), np.array([i, i], np.int32))
    assert memory.tolist() == [99, *range(1, 100)]


@pytest.mark.parametrize("count", [1, 5, WORDS_AT_ONCE, 3 * WORDS_AT_ONCE + 9])
def test_reports_take_turns(count: int) -> None:
    words = torch.zeros(count, dtype=torch.int32, device=DEVICE)
    turn = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    host = torch.zeros((2, count), dtype=torch.int32, pin_memory=DEVICE.type == "cuda")
    for i in range(1, 6):
        words.copy_(torch.arange(i, count + i))
        report_words(words, turn, host)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        assert turn.item() == i % 2, "which never overflows"
        assert host[(i - 1) % 2].tolist() == list(range(i, count + i))
        assert host[i % 2].tolist() == ([0] * count if i == 1 else list(range(i - 1, count + i - 1)))
