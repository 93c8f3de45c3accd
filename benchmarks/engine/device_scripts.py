"""Draws that follow a script on a GPU, which draws ahead of the host: a kernel of the same graph replaces tokens."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from benchmarks.engine.scripted import Script
from thoughtbubbles.engine import Engine
from thoughtbubbles.engine.cuda.sampler import DeviceSampler


class DeviceScripts:
    """Scripts of the requests with the seeds 0, 1, … of all engines on a GPU that are made afterwards."""

    def __init__(self, requests: int, tokens: int) -> None:
        """For at most so many requests, and tokens of each."""
        self._scripts = torch.full((requests, tokens), -1, dtype=torch.int32, device="cuda")
        scripts, draw = self._scripts, DeviceSampler.draw

        def draw_as_written(own: DeviceSampler, logits: Tensor, lane: Tensor, token: Tensor, *, plain: bool) -> None:
            draw(own, logits, lane, token, plain=plain)
            state = own.state
            _follow[(len(lane),)](scripts, *scripts.shape, lane, state.seed, state.drawn, state.token, token)

        DeviceSampler.draw = draw_as_written  # type: ignore[method-assign]

    def set(self, scripts: list[Script]) -> None:
        """Let the next requests follow these."""
        self._scripts.fill_(-1)
        for row, script in zip(self._scripts, scripts, strict=False):
            if script is not None:
                row[: len(script)] = torch.tensor(script[: len(row)], dtype=torch.int32)

    def control(self, engine: Engine) -> None:
        """Do nothing: the engine was made with such draws."""


@triton.jit
def _follow(scripts, rows, length, lanes, seeds, drawn, newest, tokens):
    """Replace what was drawn in each slot by the token of the script at that position, if there is one."""
    place = tl.program_id(0)
    lane = tl.load(lanes + place)
    if lane < 0:
        return
    row, at = tl.load(seeds + lane), tl.load(drawn + lane) - 1
    token = tl.load(scripts + row * length + at, mask=(row >= 0) & (row < rows) & (at < length), other=-1)
    if token >= 0:
        tl.store(tokens + place, token)
        tl.store(newest + lane, token)
