"""Draw the terminal window of the README from the output of `thoughtbubbles generate`.

python -m docs.figures.terminal [PROMPT] [--seed 3] [--out docs/terminal.svg]
"""

import argparse
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

PROMPT = "The Congress shall have power to lay and collect taxes."


def main() -> None:
    """Run the command and write the picture."""
    args = _arguments()
    words = ["generate", args.prompt, "--temperature", "0.8", "--seed", str(args.seed), "--max-tokens", "100"]
    console = Console(record=True, width=100, file=io.StringIO(), force_terminal=True, color_system="256")
    console.print(Text.from_ansi(f"$ {shlex.join(['thoughtbubbles', *words])}\n{_output(words)}"))
    args.out.write_text(_without_fonts(console.export_svg(title="thoughtbubbles")), encoding="utf-8")


def _output(words: list[str]) -> str:
    """Return what the command prints to a terminal with 256 colours."""
    terminal = {"FORCE_COLOR": "1", "TERM": "xterm-256color"}
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | terminal
    command = [sys.executable, "-m", "thoughtbubbles", *words]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)  # noqa: S603 (our own)
    return done.stdout


def _without_fonts(svg: str) -> str:
    """Return the picture without links to web fonts."""
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code, monospace", "monospace")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("prompt", nargs="?", default=PROMPT)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("docs/terminal.svg"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
