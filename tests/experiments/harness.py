"""A study of tiny models, and results made by hand."""

from typing import Any

from experiments.runner.plan import Run

TINY = """
[evaluation]
report = "english"
tuning = "tuning"
other = "code"
positions = 12
ratios = [1, 2]
windows = 2
detailed = [1]

[base]
vocab_size = 320
block_size = 16
max_block_size = 32
n_layer = 2
n_head = 2
n_embd = 16
fork_layers = [1]
batch_size = 2
save_every = 1000
log_every = 1

[arms.regular]
fork_layers = []
max_block_size = 16

[arms.2l]

[arms.random]
select_by = "random"

[sizes.small]
data = "english"
rates = [1e-3, 1e-2]
tuning = { steps = 2, warmup_steps = 1 }
final = { steps = 3, warmup_steps = 1, validate_every = 2 }

[sizes.wide]
data = "english"
tuned_at = "small"
settings = { n_embd = 32 }
final = { steps = 3, warmup_steps = 1 }
arms.regular = { n_layer = 3 }

[[stages]]
size = "small"
arms = ["regular", "2l"]
seeds = [0, 1]

[[stages]]
size = "small"
arms = ["random"]
seeds = [0]

[[stages]]
size = "wide"
arms = ["regular"]
seeds = [0]

[[claims]]
says = "forks help"
lower = "2l"
than = "regular"
"""


def result(run: Run, loss: float | None, **others: object) -> dict[str, Any]:
    """Return a line of the results file."""
    named = {"size": run.size, "arm": run.arm, "kind": run.kind, "seed": run.seed, "settings": run.settings}
    return {**named, "loss": loss, **others}
