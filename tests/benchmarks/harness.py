"""A study of tiny models, and results made by hand."""

from typing import Any

from benchmarks.study_plan import Study

TINY = """
[evaluation]
positions = 12
ratios = [1, 2]

[report]
regular = "regular"
forks = "2l"
cost = ["regular", "2l"]
dial = ["2l"]

[base]
vocab_size = 320
block_size = 16
max_block_size = 32
n_layer = 2
n_head = 2
n_embd = 16
fork_layers = [1]
steps = 2
batch_size = 2
warmup_steps = 1
log_every = 1

[arms.regular]
seeds = [0, 1, 2]
fork_layers = []

[arms.2l]
seeds = [0, 1]

[arms.noise]
seeds = [5]
fork_noise = 1.0

[[claims]]
says = "forks help"
lower = "2l"
than = "regular"
paper = "20.55 against 21.56"

[[claims]]
says = "dynamic is better than fixed"
lower = "2l:dynamic"
than = "2l:fixed"
paper = "21.18 against 23.10"
"""


def result(study: Study, arm: str, seed: int, loss: float, **others: object) -> dict[str, Any]:
    """A line of the results file."""
    told = {"arm": arm, "seed": seed, "settings": study.settings(study.find(arm, seed)), "loss": loss}
    where = {"machine": "a machine", "torch": "2", "date": "2026-01-01"}
    sizes = {"tokens": 64, "parameters": 1_500_000, "flops_per_token": 2e6}
    found = {"bits_per_byte": 1.25, "rules": {"causal": loss}, "dial": {}}
    return {**told, **where, **sizes, **found, **others}
