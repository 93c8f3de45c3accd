"""Steps on a device itself: the host waits for nothing but the step before, and any thread may take them."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from tests.engine.kernels.conftest import MakeEngine
from thoughtbubbles.engine import SamplingParams, TokenEvent
from thoughtbubbles.model import Thoughtbubbles

PROMPTS = [[5, 9, 3, 3, 3, 7], [1, 2], [8] * 7]


@contextmanager
def waiting_fails() -> Iterator[None]:
    """What makes the host wait for the device, other than an event, raises."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # torch warns that it does not notice everything
            warnings.simplefilter("ignore")
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0}, {"temperature": 0.9}, {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "logprobs": 20},
     {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "logit_bias": {3: 1}, "min_tokens": 20}],
)  # fmt: skip
def test_the_host_waits_for_nothing_while_it_decodes(
    settings: dict[str, object], small_model: Thoughtbubbles, make_engine: MakeEngine
) -> None:
    """In more steps than pages are allocated for in advance, so that some steps get new pages."""
    from thoughtbubbles.engine.cuda.decode_batch import TOKENS_AHEAD

    engine = make_engine(small_model)
    limits: dict[str, object] = {"seed": 3, "max_tokens": TOKENS_AHEAD + 15, "ignore_eos": True}
    params = SamplingParams(**limits, **settings)  # type: ignore[arg-type]
    for i, prompt in enumerate(PROMPTS):
        engine.add(str(i), prompt, params)
    told: list[TokenEvent] = []
    while len(told) < 5 * len(PROMPTS):
        told += engine.step()
    with pytest.raises(RuntimeError), waiting_fails():
        torch.ones(1, device="cuda").item()
    with waiting_fails():
        events = [event for _ in range(TOKENS_AHEAD + 5) for event in engine.step()]
    assert len(events) == (TOKENS_AHEAD + 5) * len(PROMPTS)


@pytest.mark.gpu
def test_another_thread_may_step(small_model: Thoughtbubbles, make_engine: MakeEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
    wanted = [c.token_ids for c in make_engine(small_model).generate(PROMPTS, params)]
    engine, told = make_engine(small_model), list[tuple[int, ...]]()
    thread = threading.Thread(target=lambda: told.extend(c.token_ids for c in engine.generate(PROMPTS, params)))
    thread.start()
    thread.join()
    assert told == wanted
