"""`thoughtbubbles generate` and `chat`: what is shown, on a real terminal too."""

import io
import os
import re
import readline
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest
import torch
from rich.console import Console

import thoughtbubbles
from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.model import ChatTemplate, ModelConfig, Thoughtbubbles, Tokenizer, save_checkpoint
from thoughtbubbles.terminal.chat import Chat
from thoughtbubbles.terminal.shading import SHADES, TokenWriter

ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}\n{% endfor %}a:"
CODES = {next(iter(re.findall(r"48;5;(\d+)", style.render("x")))): n for n, style in enumerate(SHADES[1:], start=2)}


def shaded(text: str) -> list[tuple[str, int]]:
    """Return the parts of `text` between escape codes, each with the streams that its shade means."""
    runs = re.findall(r"\x1b\[38;5;16;48;5;(\d+)m(.*?)\x1b\[0m|([^\x1b]+)|\x1b\[2m.*?\x1b\[0m", text, re.DOTALL)
    return [(tinted or plain, CODES.get(code, 1)) for code, tinted, plain in runs if tinted or plain]


def bare(text: str) -> str:
    """`text` without escape codes."""
    return re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", text)


def screen(*, terminal: bool = True, **environment: str) -> Console:
    environment = {"TERM": "xterm-256color", **environment}
    return Console(file=io.StringIO(), force_terminal=terminal, _environ=environment)


def written(writer: TokenWriter) -> str:
    file = writer._console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_each_token_is_shaded_by_its_streams() -> None:
    writer = TokenWriter(8, screen())
    for text, streams in (("The", 1), (" cat", 3), (" sat\n", 8), ("\n", 2)):
        writer.write(text, streams)
    assert shaded(written(writer)) == [("The", 1), (" cat", 3), (" sat", 8), ("\n\n", 1)]


@pytest.mark.parametrize(("most", "last"), [(2, "2"), (8, "8"), (32, "8+")])
def test_the_legend_tells_each_shade_that_a_token_can_have(most: int, last: str) -> None:
    writer = TokenWriter(most, screen())
    writer.legend()
    runs = [(text.strip(), shade) for text, shade in shaded(written(writer)) if text.strip()]
    assert runs == [*((str(n), n) for n in range(1, len(runs))), (last, len(runs))]
    writer.write("x", most)
    assert shaded(written(writer))[-1] == ("x", len(runs))


def test_a_character_of_several_tokens_is_shown_once_whole(tokenizer: Tokenizer) -> None:
    writer = TokenWriter(8, screen())
    writer.write_all(list("a🫧é".encode()), [1, 2, 4, 3, 2, 1, 5], tokenizer)
    assert shaded(written(writer)) == [("a", 1), ("🫧", 4), ("é", 5)]


@pytest.mark.parametrize("console", [screen(terminal=False), screen(NO_COLOR="1"), screen(TERM="dumb")])
def test_without_colours_it_is_plain_text(console: Console) -> None:
    writer = TokenWriter(8, console)
    assert not writer.shaded
    writer.legend()
    writer.write("a\tb 🫧\n[red]", 5)
    assert written(writer) == "a\tb 🫧\n[red]"


def test_what_is_written_steers_a_terminal_no_more_than_it_changes_in_a_file() -> None:
    text = "\x1b[31mred\x07\r\n\x9b1m"
    shown, kept = TokenWriter(1, screen()), TokenWriter(1, screen(terminal=False))
    shown.write(text)
    kept.write(text)
    assert (written(shown), written(kept)) == ("␛[31mred␇␍\n\ufffd1m", text)


def test_a_model_without_forks_has_no_shades_and_no_legend() -> None:
    writer = TokenWriter(1, screen())
    writer.legend()
    writer.write("plain", 1)
    assert written(writer) == "plain"


@pytest.fixture
def chat(engine: Engine) -> Chat:
    params = SamplingParams(max_tokens=6, temperature=0)
    writer = TokenWriter(8, Console(file=io.StringIO()))
    return Chat(engine, ChatTemplate(TEMPLATE), params, writer, "be")


def test_a_chat_is_the_completion_of_the_conversation_so_far(chat: Chat, engine: Engine, tokenizer: Tokenizer) -> None:
    chat.say("hi")
    (first,) = engine.generate([tokenizer.encode("s:be\nu:hi\na:")], chat._params)
    chat.say("so")
    (second,) = engine.generate([tokenizer.encode(f"s:be\nu:hi\na:{first.text}\nu:so\na:")], chat._params)
    assert written(chat._writer) == f"{first.text}\n{second.text}\n"
    assert [message["content"] for message in chat._messages] == ["hi", first.text, "so", second.text]


def test_the_oldest_is_forgotten_when_the_context_is_full(chat: Chat) -> None:
    for text in ("the first", "the second", "the third"):
        chat.say(text)
    assert "the first" not in str(chat._messages)
    assert "the third" in str(chat._messages)
    assert chat._system


def test_what_cannot_be_answered_is_told_and_forgotten(chat: Chat, capsys: pytest.CaptureFixture[str]) -> None:
    chat.say("long" * 20)
    assert chat._messages == []
    assert "the context is 64 tokens" in capsys.readouterr().err
    chat.say("hi")
    assert len(chat._messages) == 2


@pytest.fixture
def control_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone presses it whenever anything but the end of a line has been written."""
    write = TokenWriter.write

    def interrupted(writer: TokenWriter, text: str, streams: int | None = None) -> None:
        write(writer, text, streams)
        if text.strip():
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TokenWriter, "write", interrupted)


@pytest.mark.usefixtures("control_c")
def test_control_c_stops_the_answer_which_is_kept_as_far_as_it_came(chat: Chat, engine: Engine) -> None:
    (whole,) = engine.generate([engine.tokenizer.encode("s:be\nu:hi\na:")], chat._params)
    before = signal.getsignal(signal.SIGINT)
    chat.say("hi")
    assert chat._messages[-1]["content"] == whole.text[:1]
    assert not engine.has_work
    engine.cache.check_integrity()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("control_c")
def test_control_c_stops_a_text(parrot: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--checkpoint", str(parrot), "--temperature", "0", "--max-tokens", "3", "--stream"]
    assert thoughtbubbles.main(["generate", *asked]) == 130
    assert capsys.readouterr().out == "a\n"


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that says `a` for ever, and forks meanwhile."""
    folder = tmp_path_factory.mktemp("terminal") / "parrot"
    tokenizer = Tokenizer({bytes([byte]): byte for byte in range(256)}, "bytes")
    config = ModelConfig(
        vocab_size=257, block_size=4096, max_block_size=6144, n_layer=2, n_head=2, n_embd=16, fork_layers=(1,)
    )
    model = Thoughtbubbles(config)
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.arange(16) == 0)
        model.transformer.wte.weight[:, 0] = torch.arange(257) == ord("a")
    save_checkpoint(folder, model, tokenizer, {}, chat_template=TEMPLATE)
    return folder


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *argv: str) -> None:
        # The first terminal that the leader of a session opens is the one whose Ctrl-C it gets.
        script = (
            "import os, sys, thoughtbubbles; os.close(os.open(os.ttyname(0), os.O_RDWR));"
            "sys.exit(thoughtbubbles.main(sys.argv[1:]))"
        )
        self._screen, tty = os.openpty()
        inherited = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
        self._process = subprocess.Popen(
            [sys.executable, "-c", script, *argv], cwd=ROOT, stdin=tty, stdout=tty, stderr=tty, start_new_session=True,
            env={**inherited, "TERM": "xterm-256color"},
        )  # fmt: skip
        os.close(tty)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._screen)

    def type(self, keys: str) -> None:
        os.write(self._screen, keys.encode())

    def wait_for(self, text: str) -> str:
        """What was shown since the last call, when it has `text` in it, apart from colours."""
        shown = b""
        while text not in bare(decoded := shown.decode(errors="ignore").replace("\r\n", "\n")):
            assert select.select([self._screen], [], [], 60)[0], f"no {text!r} came after {shown!r}"
            shown += os.read(self._screen, 1)  # no more than that: what follows is for the next call
        return decoded

    def interrupt(self) -> None:
        """Press Ctrl-C until the prompt comes back: Python loses one that it gets just before it waits for a key."""
        for _ in range(20):
            self.type("\x03")
            if select.select([self._screen], [], [], 3)[0]:
                break
        self.wait_for("> ")

    def wait(self) -> int:
        return self._process.wait(60)


def test_a_terminal_shows_the_tokens_shaded(parrot: Path) -> None:
    asked = ["--checkpoint", str(parrot), "--temperature", "0", "--max-tokens", "5"]
    with Terminal("generate", "🫧 é", *asked) as terminal:
        shown = terminal.wait_for("tokens/s")
        assert terminal.wait() == 0
    legend, text, summary = bare(shown).splitlines()[:3]
    assert (legend, text) == ("streams of a token  1  2 ", "🫧 éaaaaa")
    assert re.fullmatch(r"5 tokens, 1\.\d\d streams a token, \d+ tokens/s", summary)
    assert {shade for _, shade in shaded(shown)} == {1, 2}, "the fork layer leaves some tokens one stream, some two"


def test_a_chat_on_a_terminal_is_stopped_by_control_c_and_left_by_control_d(parrot: Path) -> None:
    with Terminal("chat", str(parrot), "--temperature", "0", "--max-tokens", "3000") as terminal:
        terminal.wait_for("> ")
        terminal.type("half a line")
        terminal.wait_for("half a line")
        terminal.interrupt()
        terminal.type("hi\n")
        terminal.wait_for("aaaa")
        terminal.type("\x03")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.wait() == 0


@pytest.mark.skipif("libedit" in (readline.__doc__ or ""), reason="libedit takes each pasted line as a typed one")
def test_lines_pasted_into_a_chat_are_one_message(parrot: Path) -> None:
    paste = ("\x1b[200~", "\x1b[201~")  # what a terminal puts around it, if it was asked to
    with Terminal("chat", str(parrot), "--temperature", "0", "--max-tokens", "3") as terminal:
        assert "\x1b[?2004h" in terminal.wait_for("> "), "the terminal was asked to mark what is pasted"
        terminal.type("one\rtwo".join(paste) + "\r")
        shown = terminal.wait_for("aaa\n")
        assert re.search(r"one\s+two\s+", bare(shown))
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.wait() == 0, "no second answer came before the end"


def test_a_pipe_gets_the_text_alone(
    parrot: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\nyou\n"))
    assert thoughtbubbles.main(["chat", str(parrot), "--temperature", "0", "--max-tokens", "3"]) == 0
    assert capsys.readouterr().out == "aaa\naaa\n"
    asked = ["--checkpoint", str(parrot), "--temperature", "0", "--max-tokens", "3"]
    for how in ("--stream", "--no-stream"):
        assert thoughtbubbles.main(["generate", "🫧", *asked, how]) == 0
        assert capsys.readouterr().out == "🫧aaa\n"


def test_a_checkpoint_without_a_template_has_no_chat(capsys: pytest.CaptureFixture[str]) -> None:
    assert thoughtbubbles.main(["chat"]) == 2
    assert "has no chat template (chat_template.jinja)" in capsys.readouterr().err
