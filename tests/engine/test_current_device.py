"""Triton, streams and graphs use the thread's current device, which is the model's for as long as an engine steps."""

import threading
from collections import defaultdict

import pytest
import torch

from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.engine.batch import Plan
from thoughtbubbles.engine.device import current_device
from thoughtbubbles.model import Thoughtbubbles, Tokenizer

FIRST, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """The current device of each thread, as torch keeps it where there are devices."""
    devices: dict[int, int] = defaultdict(int)

    def exchange(device: int) -> int:
        before, devices[threading.get_ident()] = devices[threading.get_ident()], device
        return before

    monkeypatch.setattr(torch.cuda, "_exchange_device", exchange)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", exchange)
    return devices


def test_it_is_made_current_and_given_back(current: dict[int, int]) -> None:
    here, seen = current_device(SECOND), []
    for _ in range(2):
        with here:
            seen.append(current[threading.get_ident()])
        seen.append(current[threading.get_ident()])
    with pytest.raises(KeyError), here:
        raise KeyError
    assert [*seen, current[threading.get_ident()]] == [1, 0, 1, 0, 0]


def test_a_cpu_is_left_alone(current: dict[int, int]) -> None:
    with current_device(torch.device("cpu")):
        pass
    assert not current


@pytest.mark.parametrize("elsewhere", [False, True])
def test_whichever_thread_steps(
    elsewhere: bool,
    current: dict[int, int],
    model: Thoughtbubbles,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a step computes and draws it does on the model's device; the thread's own is as it was."""
    engine, seen = Engine(model, tokenizer), []
    engine._current = current_device(SECOND)
    launch = engine.executor.launch

    def spy(plan: Plan) -> object:
        seen.append(current[threading.get_ident()])
        return launch(plan)

    monkeypatch.setattr(engine.executor, "launch", spy)

    def work() -> None:
        engine.generate([[1, 2, 3]], SamplingParams(max_tokens=3, ignore_eos=True))
        seen.append(current[threading.get_ident()])

    if elsewhere:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    else:
        work()
    assert seen == [1, 1, 1, 0]


@pytest.mark.multi_gpu
def test_a_second_device_gives_the_cpus_tokens(
    model: Thoughtbubbles, tokenizer: Tokenizer, prompts: list[list[int]]
) -> None:
    params, told = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True), []
    on_cpu = Engine(model, tokenizer).generate(prompts, params)
    Engine(model.to(FIRST), tokenizer)  # which records its graphs before the second does

    def serve() -> None:
        engine = Engine(model.to(SECOND), tokenizer)
        told.extend(engine.generate(prompts, params))
        assert torch.cuda.current_device() == FIRST.index

    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    assert [c.token_ids for c in told] == [c.token_ids for c in on_cpu]
    assert torch.cuda.current_device() == FIRST.index
