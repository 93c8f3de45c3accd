"""The queue: first come, first served, and no request costs more to take out than another."""

from thoughtbubbles.engine.detokenizer import Detokenizer
from thoughtbubbles.engine.request import Request
from thoughtbubbles.engine.request_queue import RequestQueue
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.model import ModelConfig, Selection, Tokenizer

CONFIG = ModelConfig(vocab_size=11, block_size=32, max_block_size=64, n_layer=2, n_head=1, n_embd=8, fork_layers=(1,))
TOKENIZER = Tokenizer({bytes([byte]): byte for byte in range(10)}, "digits")


class Compared(Request):
    """A request that counts how often it is compared with another."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return self is other

    __hash__ = Request.__hash__


def requests(number: int) -> list[Request]:
    selection = Selection.of(CONFIG, "causal")
    return [
        Compared(str(i), (1, 2), SamplingParams(), selection, 0, Detokenizer(TOKENIZER)) for i in range(number)
    ]  # fmt: skip


def test_removal_looks_at_no_other_request() -> None:
    """131,072 requests aborted together were once searched one by one from the front, which blocked for 101 s."""
    waiting, queued = RequestQueue(CONFIG), requests(300)
    for request in queued:
        waiting.append(request)
    Compared.times = 0
    for request in reversed(queued):
        waiting.remove(request)
    assert (len(waiting), waiting.streams) == (0, 0)
    assert Compared.times <= len(queued)


def test_the_order_is_that_of_arrival_whoever_leaves() -> None:
    waiting, (first, second, third, fourth) = RequestQueue(CONFIG), requests(4)
    for request in (first, second, third, fourth):
        waiting.append(request)
    assert waiting.popleft() is first
    waiting.remove(third)
    waiting.appendleft(first)
    assert waiting.first is first
    assert [*waiting] == [first, second, fourth]
    assert [waiting.popleft() for _ in range(3)] == [first, second, fourth]
    assert waiting.admitted_streams == 4 * waiting.streams_of(first)
