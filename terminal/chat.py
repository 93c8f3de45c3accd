"""`thoughtbubbles chat`: chat in the terminal, with a checkpoint that has a chat template."""

import argparse
import importlib
import signal
import sys
from collections.abc import Callable
from contextlib import closing, suppress

from rich.console import Console

from thoughtbubbles.engine import Engine, SamplingParams
from thoughtbubbles.model import ChatTemplate
from thoughtbubbles.model.checkpoint.argument import add_checkpoint_argument
from thoughtbubbles.terminal import session
from thoughtbubbles.terminal.interrupt import interrupts
from thoughtbubbles.terminal.shading import TokenWriter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_checkpoint_argument(parser)
    parser.add_argument("--system", help="system message before the conversation")
    session.add_arguments(parser, max_tokens=256)


def run(args: argparse.Namespace) -> int:
    """Answer each line, or lines pasted together, until Ctrl-D. Raise `ValueError` if there is no chat template."""
    console = Console()
    _edit_lines(console)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start it with SIGINT ignored
    checkpoint, engine = session.load(args)
    if checkpoint.chat_template is None:
        raise ValueError(
            f"{args.checkpoint or 'the default checkpoint'} has no chat template (chat_template.jinja), which"
            " `thoughtbubbles chat` needs; `thoughtbubbles generate` continues a text without one"
        )
    writer = TokenWriter(checkpoint.model.config.max_ratio, console)
    half = engine.max_model_len // 2  # the other half is the conversation's
    params = session.sampling_params(args, half, return_fork_counts=writer.shaded)
    chat = Chat(engine, ChatTemplate(checkpoint.chat_template), params, writer, args.system)
    writer.legend()
    writer.note("Ctrl-C stops an answer, Ctrl-D leaves.")
    with suppress(EOFError):
        while True:
            chat.say(_read())
    writer.note("")
    return 0


class Chat:
    """A conversation; its oldest messages are dropped when the context is full."""

    def __init__(
        self, engine: Engine, template: ChatTemplate, params: SamplingParams, writer: TokenWriter, system: str | None
    ) -> None:
        """Start a conversation, with the message `system` before it unless that is None."""
        self._engine = engine
        self._template = template
        self._params = params
        self._writer = writer
        self._system = [] if system is None else [_message("system", system)]
        self._messages: list[dict[str, str]] = []

    def say(self, text: str) -> None:
        """Add the user message `text` and show the answer. On an error, print it and drop the message."""
        self._messages.append(_message("user", text))
        try:
            with interrupts() as interrupted:
                answer = self._answer(interrupted)
        except ValueError as error:
            self._messages.pop()
            print(f"thoughtbubbles: error: {error}", file=sys.stderr)
        else:
            self._messages.append(_message("assistant", answer))

    def _answer(self, interrupted: Callable[[], bool]) -> str:
        text = ""
        with closing(session.events(self._engine, self._prompt(), self._params)) as events:
            for event in events:
                text += event.text
                self._writer.write(event.text, event.fork_count)
                if interrupted():
                    break
        self._writer.write("\n")
        return text

    def _prompt(self) -> list[int]:
        """Return the conversation's token ids. Drop its oldest exchanges until prompt and answer fit the context."""
        limit = self._engine.max_model_len - self._params.max_tokens
        while len(ids := self._encode()) > limit and len(self._messages) > 1:
            del self._messages[:2]
            self._writer.note(
                f"The context of {self._engine.max_model_len} tokens is full: the oldest messages are dropped."
            )
        return ids

    def _encode(self) -> list[int]:
        ids = self._template.encode([*self._system, *self._messages], self._engine.tokenizer)
        return ids or [self._engine.tokenizer.end_of_text]


def _edit_lines(console: Console) -> None:
    """Let the arrow keys edit the line and recall earlier ones, and lines pasted together be one message.

    Readline does both; without this setting Python takes each pasted line as one that was typed. A dumb terminal would
    print the sequence that switches it on.
    """
    with suppress(ImportError):
        readline = importlib.import_module("readline")
        if not console.is_dumb_terminal:
            readline.parse_and_bind("set enable-bracketed-paste on")


def _read() -> str:
    """Return the next line that is not blank. Ctrl-C discards the current line; `EOFError` at the end of the input."""
    prompt = "> " if sys.stdin.isatty() and sys.stdout.isatty() else ""
    while True:
        try:
            if line := input(prompt).strip():
                return line
        except KeyboardInterrupt:
            print()


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
