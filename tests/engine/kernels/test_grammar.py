"""A grammar on the device's executor: its requests wait for each step, and the others run ahead as ever."""

from tests.engine.kernels.conftest import MakeEngine
from tests.engine.kernels.test_decode_ahead import PROMPTS, assert_alike, params, plain, run
from thoughtbubbles.engine import Grammar
from thoughtbubbles.model import Thoughtbubbles, Tokenizer


def test_beside_requests_that_run_ahead(
    small_model: Thoughtbubbles, make_engine: MakeEngine, tokenizer: Tokenizer
) -> None:
    digits = Grammar(kind="regex", text="[0-9]{2}-?")
    requests = [
        ("digits", PROMPTS[0], params(seed=1, grammar=digits, ignore_eos=False)),
        ("free", PROMPTS[1], params(seed=2)),
        ("choice", PROMPTS[2], params(temperature=0, grammar=Grammar.choice(["on", "off"]), ignore_eos=False)),
        ("counted", PROMPTS[3], params(seed=3, grammar=digits, ignore_eos=False, return_fork_counts=True, logprobs=1)),
    ]
    found = run(make_engine(small_model), requests)
    assert_alike(found, run(plain(small_model, tokenizer), requests))
    assert found["choice"].text in {"on", "off"}
