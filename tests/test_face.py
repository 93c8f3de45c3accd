"""The face of the project, seen by someone who imports it and by someone who types its command."""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import thoughtbubbles
from thoughtbubbles.model import ModelConfig, Tokenizer, save_checkpoint
from thoughtbubbles.model.extras import client_install_command

ROOT = Path(__file__).parents[1]
IDS = torch.tensor([[5, 250, 17, 17]])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows bytes and nothing else."""
    folder = tmp_path_factory.mktemp("checkpoints")
    Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes").save(folder / "ranks")
    config = ModelConfig(
        vocab_size=257, block_size=16, max_block_size=32, n_layer=2, n_head=2, n_embd=16, fork_layers=(1,)
    )
    model = thoughtbubbles.Thoughtbubbles(config)
    save_checkpoint(folder / "small", model, Tokenizer.from_file(folder / "ranks"), {})
    return folder / "small"


def test_the_public_names_are_these() -> None:
    """The surface others build on; a change here is a change for them."""
    assert thoughtbubbles.__all__ == [
        "Engine",
        "EngineConfig",
        "ModelConfig",
        "SamplingParams",
        "Thoughtbubbles",
        "Tokenizer",
        "load",
    ]
    for name in thoughtbubbles.__all__:
        assert getattr(thoughtbubbles, name).__name__ == name
        assert name in dir(thoughtbubbles)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Bubble'"):
        thoughtbubbles.Bubble  # noqa: B018
    assert not hasattr(thoughtbubbles, "Bubble")


def imported_by(statement: str) -> set[str]:
    """The modules that a fresh Python holds after `statement`."""
    script = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, check=True)
        .stdout.decode()
        .split()
    )


def test_importing_the_face_imports_nothing_heavy() -> None:
    modules = imported_by("import thoughtbubbles; thoughtbubbles.__version__; dir(thoughtbubbles)")
    assert modules.isdisjoint({"torch", "thoughtbubbles.model", "thoughtbubbles.engine", "thoughtbubbles.training"})
    assert {name for name in modules if name.startswith("thoughtbubbles.server")} == {
        "thoughtbubbles.server",
        "thoughtbubbles.server.package_version",
    }


def test_a_command_does_not_import_the_others() -> None:
    modules = imported_by(
        "import thoughtbubbles\ntry: thoughtbubbles.main(['generate', '--help'])\nexcept SystemExit: pass"
    )
    assert "thoughtbubbles.terminal.generate" in modules
    assert modules.isdisjoint({"fastapi", "thoughtbubbles.server", "thoughtbubbles.training", "tokenizers"})


def test_a_checkpoint_is_loaded(saved: Path) -> None:
    model, tokenizer = thoughtbubbles.load(saved)
    assert tokenizer.decode(tokenizer.encode("café")) == "café"
    logits, forks = model(IDS, rule="causal", ratio=1.5, return_forks=True)
    assert logits.shape == (1, 4, 257)
    assert [fork.layer for fork in forks] == [1]
    half, _ = thoughtbubbles.load(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("command", thoughtbubbles.COMMANDS)
def test_every_command_explains_its_arguments(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        thoughtbubbles.main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: thoughtbubbles {command}")
    assert len(re.findall(r"^  \S", shown, re.MULTILINE)) > 2, "a command has more than --help"


def parser_of(command: str) -> argparse.ArgumentParser:
    (commands,) = thoughtbubbles._parser(command)._subparsers._group_actions
    return commands.choices[command]


@pytest.mark.parametrize("command", thoughtbubbles.COMMANDS)
def test_help_explains_each_argument_and_tells_its_default(command: str) -> None:
    parser = parser_of(command)
    for action in parser._actions:
        assert action.help, f"{action.dest} is not explained"
        explained = parser._get_formatter()._expand_help(action)
        if isinstance(action.default, str | int | float | Path) and action.default not in {0, argparse.SUPPRESS}:
            assert f"({action.default})" in explained


@pytest.mark.parametrize("command", thoughtbubbles.COMMANDS)
def test_help_fits_a_terminal_of_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _usage, explanations = parser_of(command).format_help().split("\n\n", 1)
    assert [line for line in explanations.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", ["serve", "chat", "evaluate", "analyse", "inspect"])
@pytest.mark.parametrize("both", ["one --checkpoint two", "--checkpoint two one"])
def test_two_checkpoints_are_refused(command: str, both: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser_of(command).parse_args(both.split())
    assert "not allowed with argument" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["sing"], ["convert"]])
def test_a_command_line_that_makes_no_sense_ends_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        thoughtbubbles.main(argv)
    assert end.value.code == 2
    assert "thoughtbubbles" in capsys.readouterr().err


@pytest.mark.parametrize("mistake", [["--prot", "1"], ["here", "there"]])
def test_a_mistake_in_a_command_shows_the_usage_of_that_command(
    mistake: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        thoughtbubbles.main(["serve", *mistake])
    assert end.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("usage: thoughtbubbles serve")
    assert "thoughtbubbles serve: error: unrecognized arguments" in shown


@pytest.mark.parametrize("form", [["{}"], ["--checkpoint", "{}"]])
@pytest.mark.parametrize("command", [["inspect"], ["generate", "--seed", "1"]])  # a text of another seed may be empty
def test_every_command_takes_a_checkpoint_as_an_argument_and_as_an_option(
    command: list[str], form: list[str], saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert thoughtbubbles.main([*command, *(word.format(saved) for word in form)]) == 0
    assert capsys.readouterr().out.strip()


def test_a_text_is_continued_as_far_as_the_context_reaches(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The context has 16 tokens, and `--max-tokens` is 128 where it is not given."""
    assert thoughtbubbles.main(["generate", str(saved), "hello", "--seed", "1"]) == 0
    assert capsys.readouterr().out.startswith("hello")
    assert thoughtbubbles.main(["generate", str(saved), "hello", "--max-tokens", "12"]) == 2
    assert "the context is 16 tokens" in capsys.readouterr().err


def test_words_that_are_not_quoted_are_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        thoughtbubbles.main(["generate", str(saved), "two", "words"])
    assert "quote it" in capsys.readouterr().err


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        thoughtbubbles.main(["--version"])
    assert capsys.readouterr().out == f"thoughtbubbles {thoughtbubbles.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*", thoughtbubbles.__version__)


@pytest.mark.parametrize(
    "argv", [["generate", "--checkpoint", "nowhere"], ["convert", "nowhere", "out", "--tokenizer", "none"]]
)
def test_a_mistake_is_told_in_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert thoughtbubbles.main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"thoughtbubbles: error: .*no.*\n", shown.err)


def test_the_load_generator_is_in_a_package_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = imported_by(
        "sys.path.append('clients/python'); import thoughtbubbles; thoughtbubbles._module('bench')",
    )
    assert "thoughtbubbles_client.bench.command" in modules
    assert modules.isdisjoint(
        {"torch", "thoughtbubbles.model", "thoughtbubbles.engine", "thoughtbubbles.server", "thoughtbubbles.training"}
    )

    def absent(name: str) -> object:
        raise ModuleNotFoundError(name=name.partition(".")[0])

    monkeypatch.setattr(thoughtbubbles, "importlib", SimpleNamespace(import_module=absent))
    assert thoughtbubbles.main(["bench"]) == 2
    assert capsys.readouterr().err.endswith(f"{client_install_command()}\n")


def test_control_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_args: object) -> int:
        raise KeyboardInterrupt

    command = SimpleNamespace(add_arguments=lambda _parser: None, run=run)
    monkeypatch.setitem(sys.modules, "thoughtbubbles.terminal.generate", command)
    assert thoughtbubbles.main(["generate"]) == 130


def test_a_reader_who_leaves_is_no_error(saved: Path) -> None:
    command = [sys.executable, "-m", "thoughtbubbles", "inspect", str(saved)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("prompt", ["To be", ""])
def test_generate_prints_what_the_oracle_makes(saved: Path, capsys: pytest.CaptureFixture[str], prompt: str) -> None:
    from thoughtbubbles.model.generate import generate

    arguments = ["--checkpoint", str(saved), "--max-tokens", "8", "--temperature", "0", "--fork-ratio", "1.5"]
    assert thoughtbubbles.main(["generate", prompt, *arguments]) == 0
    model, tokenizer = thoughtbubbles.load(saved)
    end = tokenizer.end_of_text
    made = generate(model, tokenizer.encode(prompt) or [end], 8, ratio=1.5, temperature=0, end_of_text=end)
    assert capsys.readouterr().out == prompt + tokenizer.decode(made).removesuffix("<|endoftext|>") + "\n"


def test_the_users_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "USAGE.md").read_text(encoding="utf-8"), re.DOTALL)
    examples = [block for block in blocks if "thoughtbubbles.load" in block]
    assert examples, "docs/USAGE.md shows a researcher how to begin"
    monkeypatch.chdir(ROOT)
    for example in examples:
        exec(compile(example, "USAGE.md", "exec"), {})
    assert capsys.readouterr().err == ""


def status(arguments: str, folder: Path) -> int:
    """Return the exit status of Python in `folder`."""
    script, environment = f'exec "{sys.executable}" {arguments}', {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(["sh", "-c", script], cwd=folder, env=environment, check=False).returncode


@pytest.mark.parametrize("module", ["thoughtbubbles", "thoughtbubbles.training"])
@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "<&- >&- 2>&-"])
def test_a_command_runs_without_standard_streams(module: str, closed: str, tmp_path: Path) -> None:
    """A service may start so. What opens next gets the numbers of closed streams, and libuv aborts for a socket."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 9)
    command = "prepare --train a.txt --val a.txt --vocab-size 258 --out out"
    assert status(f"-m {module} {command} {closed}", tmp_path) == 0


@pytest.mark.parametrize("module", ["thoughtbubbles serve", "thoughtbubbles.server"])
def test_a_server_without_standard_streams_makes_no_socket_of_their_numbers(module: str, tmp_path: Path) -> None:
    assert status(f"-m {module} --port 0 --checkpoint none <&- >&- 2>&-", tmp_path) == 2


def test_an_import_leaves_the_closed_streams_of_its_program(tmp_path: Path) -> None:
    script = "import sys, thoughtbubbles; sys.exit(sys.stdin is not None)"
    assert status(f"-c '{script}' <&-", tmp_path) == 0


def test_closed_streams_are_the_null_device(tmp_path: Path) -> None:
    script = (
        "import os, sys, thoughtbubbles; thoughtbubbles.open_standard_streams(); null = os.stat(os.devnull);"
        "opened = [os.path.samestat(os.fstat(n), null) and os.get_inheritable(n) for n in range(3)];"
        "print('heard'); print('heard', file=sys.stderr); sys.exit(opened != [True] * 3 or sys.stdin.read() != '')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = ["sh", "-c", f'exec "{sys.executable}" -c "{script}" <&- >&- 2>&-']
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
