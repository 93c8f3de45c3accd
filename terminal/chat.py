"""`thoughtbubbles chat`: a conversation in the terminal, for checkpoints that have a chat template."""

import argparse
import importlib
import signal
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from rich.console import Console

from thoughtbubbles.engine.engine import Engine
from thoughtbubbles.engine.sampling_params import SamplingParams
from thoughtbubbles.model import ChatTemplate
from thoughtbubbles.terminal import session
from thoughtbubbles.terminal.interrupt import interrupts
from thoughtbubbles.terminal.shading import TokenWriter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("checkpoint", type=Path, nargs="?", help=session.CHECKPOINT)
    parser.add_argument("--system", help="what the model is told before the conversation")
    session.add_arguments(parser, max_tokens=256)


def run(args: argparse.Namespace) -> int:
    """Answer what is typed, until Ctrl-D. `ValueError` when the checkpoint has no chat template."""
    with suppress(ImportError):  # where it is, the arrow keys edit the line and bring earlier ones back
        importlib.import_module("readline")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started us with Ctrl-C ignored
    console = Console()
    checkpoint, engine = session.load(args)
    if checkpoint.chat_template is None:
        raise ValueError(
            f"{args.checkpoint or 'the checkpoint that ships'} has no chat template (chat_template.jinja), so it holds"
            " no conversation: `thoughtbubbles generate` continues a text"
        )
    writer = TokenWriter(checkpoint.model.config.max_ratio, console)
    params = session.sampling_params(args, return_fork_counts=writer.shaded)
    chat = Chat(engine, ChatTemplate(checkpoint.chat_template), params, writer, args.system)
    writer.legend()
    writer.note("Ctrl-C stops an answer, Ctrl-D leaves.")
    with suppress(EOFError):
        while True:
            chat.say(_read())
    writer.note("")
    return 0


class Chat:
    """A conversation that is kept, as far as the context reaches."""

    def __init__(
        self, engine: Engine, template: ChatTemplate, params: SamplingParams, writer: TokenWriter, system: str | None
    ) -> None:
        """`system` is what the model is told first, if anything."""
        self._engine = engine
        self._template = template
        self._params = params
        self._writer = writer
        self._system = [] if system is None else [_message("system", system)]
        self._said: list[dict[str, str]] = []

    def say(self, text: str) -> None:
        """Say `text` and show the answer. What cannot be answered is told, and forgotten."""
        self._said.append(_message("user", text))
        try:
            with interrupts() as interrupted:
                answer = self._answer(interrupted)
        except ValueError as error:
            self._said.pop()
            print(f"thoughtbubbles: error: {error}", file=sys.stderr)
        else:
            self._said.append(_message("assistant", answer))

    def _answer(self, interrupted: Callable[[], bool]) -> str:
        text = ""
        with closing(session.events(self._engine, self._prompt(), self._params)) as told:
            for event in told:
                text += event.text
                self._writer.write(event.text, event.fork_count)
                if interrupted():
                    break
        self._writer.write("\n")
        return text

    def _prompt(self) -> list[int]:
        """Token ids of the conversation, whose oldest exchanges are forgotten while they leave the answer no room."""
        room = self._engine.max_model_len - self._params.max_tokens
        while len(ids := self._encode()) > room and len(self._said) > 1:
            del self._said[:2]
            self._writer.note(f"The context of {self._engine.max_model_len} tokens is full: the oldest is forgotten.")
        return ids

    def _encode(self) -> list[int]:
        ids = self._template.encode([*self._system, *self._said], self._engine.tokenizer)
        return ids or [self._engine.tokenizer.end_of_text]


def _read() -> str:
    """The next line that says something. Ctrl-C begins it anew; `EOFError` where there is none."""
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    while True:
        try:
            if line := input(prompt).strip():
                return line
        except KeyboardInterrupt:
            print()


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
