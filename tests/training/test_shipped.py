"""The checkpoint in the repository is what the recipe `shipped` makes, and small enough to stay there."""

from pathlib import Path

from thoughtbubbles.model import load_checkpoint
from thoughtbubbles.training.config import TrainConfig
from thoughtbubbles.training.recipes import shipped
from thoughtbubbles.training.trainer import _FREE_ON_RESUME

FOLDER = Path(__file__).parents[2] / "checkpoints" / "thoughtbubbles-11m"


def test_the_checkpoint_says_it_was_made_by_the_recipe() -> None:
    checkpoint = load_checkpoint(FOLDER)
    model, train = shipped()
    made = TrainConfig(**checkpoint.provenance["training"]).to_dict()
    assert checkpoint.model.config == model
    assert {name: made[name] for name in made.keys() - _FREE_ON_RESUME} == {
        name: value for name, value in train.to_dict().items() if name not in _FREE_ON_RESUME
    }
    assert checkpoint.provenance["step"] == train.steps


def test_the_checkpoint_is_at_most_24_megabytes() -> None:
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 24_000_000
