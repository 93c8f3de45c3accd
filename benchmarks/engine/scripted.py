"""Draws that follow a script, not the model: what is measured is an engine under a model that writes just that."""

from typing import Any

from thoughtbubbles.engine import Engine

Script = list[int] | None
"""What is to be drawn; None: what the model draws."""


class HostScripts:
    """Scripts of the requests "0", "1", … of an engine on a CPU."""

    def __init__(self) -> None:
        self._scripts: list[Script] = []

    def set(self, scripts: list[Script]) -> None:
        """Let the next requests follow these."""
        self._scripts = scripts

    def control(self, engine: Engine) -> None:
        """Let the draws of an engine follow."""
        paged: Any = engine.executor.paged  # type: ignore[attr-defined]
        draw = paged.draw

        def draw_as_written(batch: Any, extended: Any) -> Any:  # noqa: ANN401 - of either executor
            drawn = draw(batch, extended)
            for i, (request, guessed) in enumerate(zip(batch.requests, batch.guessed, strict=True)):
                script = self._scripts[int(request.id)] if self._scripts else None
                if script is not None and drawn.tokens[i] is not None:
                    drawn.tokens[i] = script[len(request.output) + guessed]
            return drawn

        paged.draw = draw_as_written
