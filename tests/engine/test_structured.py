"""Completions match their grammar, whatever the model would rather write; other requests never notice."""

from __future__ import annotations

import json
import math
import random
import re
from collections import defaultdict

import jsonschema
import pytest

from tests.engine.conftest import lively_model
from tests.engine.embedded import embed
from tests.engine.schemas import Schema, random_schema
from thoughtbubbles.engine import Completion, Engine, EngineConfig, Grammar, InvalidRequest, SamplingParams, TokenEvent
from thoughtbubbles.engine.structured import compilation, compiler
from thoughtbubbles.engine.structured.compiler import GrammarCompiler, check_grammar, compiler_of
from thoughtbubbles.engine.structured.state import GrammarState
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, install_command

DIGITS = Grammar(kind="regex", text="[0-9]{3}-[0-9]{2}")
PERSON = Grammar.json(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "age"],
    }
)


@pytest.fixture(scope="module")
def long_engine(tokenizer: Tokenizer) -> Engine:
    """Has a context that JSON fits into."""
    return Engine(lively_model(block_size=256, max_block_size=512), tokenizer, EngineConfig(cache_bytes=1 << 25))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """256 bytes and end-of-text, one for the whole file: its compiled grammars are kept."""
    return Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")


def run(engine: Engine, requests: dict[str, SamplingParams]) -> dict[str, Completion]:
    events: dict[str, list[TokenEvent]] = defaultdict(list)
    for name, params in requests.items():
        engine.add(name, [1, 2, 3], params)
    while engine.has_work:
        for event in engine.step():
            events[event.request_id].append(event)
    return {name: Completion.of(events[name]) for name in requests}


def one(engine: Engine, grammar: Grammar, **settings: object) -> Completion:
    return run(engine, {"only": SamplingParams(**{"max_tokens": 60, "grammar": grammar, **settings})})["only"]  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [24, pytest.param(1000, marks=pytest.mark.slow)])
def test_random_schemas(count: int, long_engine: Engine) -> None:
    dice = random.Random(count)
    schemas: dict[str, Schema] = {str(i): random_schema(dice) for i in range(count)}
    found = run(
        long_engine,
        {name: SamplingParams(max_tokens=150, grammar=Grammar.json(schemas[name]), seed=int(name)) for name in schemas},
    )
    whole = {name: each.text for name, each in found.items() if each.finish_reason == "stop"}
    for name, text in whole.items():
        jsonschema.Draft202012Validator(schemas[name]).validate(json.loads(text))
    assert {each.finish_reason for each in found.values()} <= {"stop", "length"}
    assert len(whole) > 0.8 * count


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (DIGITS, r"\d{3}-\d\d"),
        (Grammar.choice(["yes", "no", "a+b", 'é😀\n/"\\']), r'yes|no|a\+b|é😀\n/"\\'),
        (Grammar(kind="grammar", text='start: "a" part{2}\npart: "x" | /[0-9]/'), "a[x0-9]{2}"),
        (Grammar(kind="grammar", text='root ::= "a" part\npart ::= "x" | [0-9]'), "a[x0-9]"),
        (Grammar.json({"enum": [1, "b"]}), '1|"b"'),
        (Grammar(kind="regex", text=""), ""),
    ],
)
@pytest.mark.parametrize("temperature", [0, 1])
def test_every_kind_of_grammar(grammar: Grammar, pattern: str, temperature: float, long_engine: Engine) -> None:
    completion = one(long_engine, grammar, temperature=temperature)
    assert re.fullmatch(pattern, completion.text)
    assert (completion.finish_reason, completion.stop_reason) == ("stop", None)


def test_a_number_of_tokens_cuts_it(long_engine: Engine) -> None:
    completion = one(long_engine, DIGITS, max_tokens=4)
    assert re.fullmatch(r"\d{3}-", completion.text)
    assert completion.finish_reason == "length"


def test_end_of_text_comes_only_where_the_grammar_may_end(long_engine: Engine) -> None:
    wanted = {long_engine.tokenizer.end_of_text: 100.0}
    assert one(long_engine, DIGITS, logit_bias=wanted).finish_reason == "stop"
    assert one(long_engine, Grammar(kind="regex", text="(ab)+"), logit_bias=wanted).text == "ab"


def test_a_stop_string_ends_it_earlier(long_engine: Engine) -> None:
    completion = one(long_engine, DIGITS, stop=("-",))
    assert re.fullmatch(r"\d{3}", completion.text)
    assert (completion.finish_reason, completion.stop_reason) == ("stop", "-")


def test_min_tokens_gives_way_where_nothing_else_may_come(long_engine: Engine) -> None:
    assert one(long_engine, DIGITS, min_tokens=20).finish_reason == "stop"
    wanted = {long_engine.tokenizer.end_of_text: 100.0}
    completion = one(long_engine, Grammar(kind="regex", text="a{2,9}"), min_tokens=5, logit_bias=wanted)
    assert completion.text == "a" * 5


def test_log_probabilities_are_those_of_the_model(long_engine: Engine) -> None:
    completion = one(long_engine, Grammar.choice(["a"]), logprobs=3, temperature=0, max_tokens=1)
    free = run(long_engine, {"free": SamplingParams(max_tokens=1, logprobs=3, temperature=0)})["free"]
    assert completion.events[0].top_logprobs == free.events[0].top_logprobs
    assert completion.events[0].logprob
    assert completion.events[0].logprob < -0.1  # not of the only token that may come


def test_the_seed_alone_decides(long_engine: Engine) -> None:
    requests = {str(seed): SamplingParams(max_tokens=80, grammar=PERSON, seed=seed) for seed in range(6)}
    together = run(long_engine, requests)
    alone = {name: run(long_engine, {name: params})[name] for name, params in requests.items()}
    assert {name: each.token_ids for name, each in together.items()} == {n: each.token_ids for n, each in alone.items()}
    assert len({each.text for each in alone.values()}) == 6


def test_other_requests_never_notice(long_engine: Engine) -> None:
    free = {"free": SamplingParams(max_tokens=20, seed=1, ignore_eos=True, top_k=50)}
    beside = run(long_engine, free | {str(i): SamplingParams(max_tokens=40, grammar=PERSON) for i in range(3)})
    assert beside["free"].token_ids == run(long_engine, free)["free"].token_ids


@pytest.mark.parametrize("rule", ["causal", "dynamic"])
def test_executors_agree(rule: str, model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    params = SamplingParams(max_tokens=30, grammar=DIGITS, seed=5, fork_selection=rule)  # type: ignore[arg-type]
    engines = [Engine(model, tokenizer, EngineConfig(executor=kind, page_size=4)) for kind in ("portable", "auto")]
    texts = {run(engine, {"only": params})["only"].token_ids for engine in engines}
    assert len(texts) == 1


def test_preemption_changes_nothing(model: Thoughtbubbles, tokenizer: Tokenizer) -> None:
    letters = Grammar(kind="regex", text="([a-m][n-z]){20}")
    requests = {str(seed): SamplingParams(max_tokens=50, grammar=letters, seed=seed) for seed in range(4)}
    roomy = Engine(model, tokenizer, EngineConfig(page_size=4))
    tight = Engine(model, tokenizer, EngineConfig(page_size=4, cache_bytes=160_000, prefix_caching=False))
    expected, found = run(roomy, requests), run(tight, requests)
    assert tight.stats().preemptions_total > 0
    assert {name: each.token_ids for name, each in found.items()} == {
        name: each.token_ids for name, each in expected.items()
    }


def test_a_vocabulary_may_lack_what_the_grammar_wants() -> None:
    small = Tokenizer({bytes([byte]): i for i, byte in enumerate(b"abc")}, "small")
    model = lively_model(vocab_size=4)
    with pytest.raises(InvalidRequest, match="cannot be used"):
        one(Engine(model, small), Grammar.choice(["az"]))


def test_a_grammar_that_becomes_too_complex_ends_its_request_alone(
    long_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "MOST_LEXER_STATES", 30)
    free = {"free": SamplingParams(max_tokens=20, seed=1, ignore_eos=True)}
    grammar = Grammar(kind="regex", text="([a-z]{3}[0-9]{4}|[a-f]+x){20}")
    found = run(long_engine, free | {"complex": SamplingParams(max_tokens=100, seed=0, grammar=grammar)})
    assert found["complex"].finish_reason == "error"
    assert isinstance(found["complex"].stop_reason, str)
    assert found["free"].finish_reason == "length"
    assert long_engine.stats().non_finite_logits_total == 0
    assert one(long_engine, DIGITS).finish_reason == "stop"
    assert one(long_engine, grammar, seed=0, max_tokens=100).token_ids == found["complex"].token_ids, "compiled anew"


def test_a_token_whose_grammar_then_fails_is_delivered_with_its_forks(
    long_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "MOST_LEXER_STATES", 30)
    grammar = Grammar(kind="regex", text="([a-z]{3}[0-9]{4}|[a-f]+x){20,21}")  # no other test uses it up
    plain = one(long_engine, grammar, seed=0, max_tokens=100)
    for reports in ({"return_fork_counts": True}, {"return_fork_scores": True}):
        reported = one(long_engine, grammar, seed=0, max_tokens=100, **reports)
        assert (reported.finish_reason, reported.token_ids) == ("error", plain.token_ids)
        *tokens, error = reported.events
        assert all(each.fork_count or each.fork_scores for each in tokens)
        assert (error.token_id, error.stop_reason) == (None, plain.stop_reason)


def test_a_grammar_that_fails_does_not_hide_logits_that_are_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is NaN must not be found by the next request, either."""
    byte_tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
    engine = Engine(lively_model(), byte_tokenizer, EngineConfig(page_size=4, cache_bytes=1 << 22))
    monkeypatch.setattr(GrammarState, "failure", "for the test")
    embed(monkeypatch, engine.model, 3, math.nan)
    assert one(engine, DIGITS).finish_reason == "error"
    assert engine.stats().non_finite_logits_total == 1
    assert engine.cache.use().bytes == 0


@pytest.mark.parametrize(
    ("grammar", "problem"),
    [
        (Grammar(kind="regex", text="(a"), "unclosed group"),
        (Grammar(kind="regex", text="(?=a)b"), "look-around"),
        (Grammar(kind="grammar", text="start: other"), 'unknown name: "other"'),
        (Grammar(kind="grammar", text="start: start"), "no text matches it"),
        (Grammar(kind="grammar", text="root ::= " + "(" * 9000), "grammar cannot be used"),
        (Grammar.json({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"]'),
        (Grammar.json({"minimum": 3, "maximum": 2, "type": "integer"}), "Unsatisfiable"),
        (Grammar.json({"$ref": "http://127.0.0.1/x.json"}), "x.json"),
        (Grammar.json([1]), "object schema"),
        (Grammar.json(False), "Unsatisfiable"),
    ],
)
def test_a_grammar_with_a_mistake_is_refused(grammar: Grammar, problem: str, long_engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(problem)) as refusal:
        one(long_engine, grammar)
    assert (refusal.value.param, refusal.value.code) == ("grammar", "invalid_grammar")
    assert not long_engine.has_work


def test_a_grammar_that_would_compile_for_minutes_is_refused(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "CPU_SECONDS", 0.3)
    fresh = GrammarCompiler(tokenizer)
    endless = Grammar.json({"type": "integer", "multipleOf": 1000003})
    with pytest.raises(InvalidRequest, match=r"more than 0\.3 seconds"):
        fresh.start(endless)
    assert fresh.start(DIGITS).failure is None
    monkeypatch.setattr(GrammarCompiler, "_compile", None)  # neither is compiled again
    assert fresh.start(DIGITS).failure is None
    with pytest.raises(InvalidRequest, match=r"more than 0\.3 seconds"):
        fresh.start(endless)


def test_rules_that_refer_to_each_other_deeply_take_no_process_down(tokenizer: Tokenizer) -> None:
    rules = "\n".join(f"a{i}: a{i + 1}" for i in range(1100))
    check_grammar(Grammar(kind="grammar", text=f'start: a0\n{rules}\na1100: "x"'), tokenizer)


def test_only_the_grammars_used_last_are_kept(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "MOST_KEPT", 2)
    fresh, compiled = GrammarCompiler(tokenizer), list[str]()
    compile_one = fresh._compile
    monkeypatch.setattr(fresh, "_compile", lambda grammar: (compiled.append(grammar.text), compile_one(grammar))[1])
    for text in ("a", "b", "a", "c", "a", "b"):
        fresh.start(Grammar(kind="regex", text=text))
    assert compiled == ["a", "b", "c", "b"]


def test_a_grammar_that_a_failing_completion_forgets_is_compiled_for_the_next_request(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure may come at any moment, also right after the grammar is compiled anew."""
    fresh = GrammarCompiler(tokenizer)
    keep = fresh._keep

    def keep_and_forget(*kept: object) -> None:
        keep(*kept)  # type: ignore[arg-type]
        fresh._forget(DIGITS)

    monkeypatch.setattr(fresh, "_keep", keep_and_forget)
    assert fresh.start(DIGITS).failure is None
    assert not fresh.is_compiled(DIGITS)


def test_a_compiler_is_shared_by_all_that_use_a_tokenizer(tokenizer: Tokenizer) -> None:
    assert compiler_of(tokenizer) is compiler_of(tokenizer)


def test_without_the_extra_it_is_refused(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "find_spec", lambda _name: None)
    with pytest.raises(InvalidRequest, match=re.escape(install_command("structured"))) as refusal:
        check_grammar(Grammar(kind="regex", text="new", param="guided_regex"), tokenizer)
    assert (refusal.value.param, refusal.value.code) == ("guided_regex", "missing_extra")


def test_settings_that_contradict_a_grammar_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="ignore_eos"):
        SamplingParams(grammar=DIGITS, ignore_eos=True)
    with pytest.raises(InvalidRequest, match="at most 16384 characters, not 20000"):
        Grammar(kind="regex", text="a" * 20000)
    with pytest.raises(InvalidRequest, match="not a JSON schema"):
        Grammar.json({"a": object()})
