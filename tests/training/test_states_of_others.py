"""A state is data: resuming from a state of others, or a damaged one, executes no code and says what is wrong."""

import io
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo

from tests.training.harness import MODEL, TRAIN, stop_after
from thoughtbubbles.training.distributed import Ranks
from thoughtbubbles.training.state import latest_state
from thoughtbubbles.training.trainer import STATE_FOLDER, Trainer


class Attack:
    """Leaves a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.trace,)


def trainer(data: Path, out: Path, *, resume: bool = False) -> Trainer:
    return Trainer(MODEL, TRAIN, data=data, out=out, ranks=Ranks(device=torch.device("cpu")), resume=resume)


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    trainer(data, out).run(stop_after(1))
    return out


@pytest.fixture
def state(run: Path, tmp_path: Path) -> Path:
    """The folder of the one state of a run in `tmp_path / "run"`."""
    shutil.copytree(run, tmp_path / "run")
    return latest_state(tmp_path / "run" / STATE_FOLDER)


def store(state: Path, item: str, content: bytes, file: str = "other.distcp") -> None:
    """Have the index say that the plain value `item` is `content`, in a file of its own."""
    (state / "other.distcp").write_bytes(content)
    index = pickle.loads((state / ".metadata").read_bytes())
    [where] = [each for each in index.storage_data if each.fqn == item]
    index.storage_data[where] = _StorageInfo(file, 0, len(content))
    (state / ".metadata").write_bytes(pickle.dumps(index))


def saved(value: object, *, zipped: bool = True) -> bytes:
    """`value` as torch saves it."""
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


LR = "optimizers.param_groups.transformer.wte.weight.lr"


def test_code_in_the_index_is_not_run(data: Path, state: Path, tmp_path: Path) -> None:
    (state / ".metadata").write_bytes(pickle.dumps(Attack(tmp_path / "trace")))
    with pytest.raises(ValueError, match=r"^resume: .*step-1/\.metadata is not the index .* pathlib\.Path\.touch$"):
        trainer(data, tmp_path / "run", resume=True)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_value_is_not_run(data: Path, state: Path, tmp_path: Path, zipped: bool) -> None:
    store(state, LR, saved(Attack(tmp_path / "trace"), zipped=zipped))
    with pytest.raises(ValueError, match=r"^resume: .*step-1 cannot be read: "):
        trainer(data, tmp_path / "run", resume=True)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("file", ["../other.distcp", "/dev/zero", "."])
def test_a_state_reads_no_file_but_its_own(data: Path, state: Path, tmp_path: Path, file: str) -> None:
    store(state, LR, saved(1.0), file)
    (state.parent / "other.distcp").write_bytes(saved(1.0))
    with pytest.raises(ValueError, match=rf"^resume: .*step-1/\.metadata names '{re.escape(file)}'"):
        trainer(data, tmp_path / "run", resume=True)


def cut(state: Path, name: str) -> None:
    (state / name).write_bytes((state / name).read_bytes()[:-999])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda state: cut(state, ".metadata"), r"\.metadata is not the index of a distributed checkpoint"),
        (lambda state: (state / ".metadata").write_bytes(pickle.dumps([])), r"\.metadata is not the index"),
        (lambda state: cut(state, "__0_0.distcp"), r"__0_0\.distcp is shorter than its index says"),
        (lambda state: (state / "__0_0.distcp").unlink(), r"__0_0\.distcp is missing"),
        (lambda state: store(state, LR, b"nothing of torch's"), r"step-1 cannot be read: "),
        (lambda state: (state / "facts.json").unlink(), r"facts\.json"),
        (lambda state: (state / "facts.json").write_text('{"step": 1'), r"facts\.json: not JSON"),
        (lambda state: (state / "facts.json").write_text("[" * 100_000), r"facts\.json: not JSON"),
        (lambda state: (state / "facts.json").write_text("[1]"), r"facts\.json: not a JSON object"),
        (lambda state: (state / "facts.json").write_text("{}"), r"facts\.json lacks model"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_damaged_state_is_named(
    data: Path, state: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(state)
    with pytest.raises(ValueError, match=f"^resume: .*{reason}"):
        trainer(data, tmp_path / "run", resume=True)


def test_plain_values_come_back(data: Path, state: Path, tmp_path: Path) -> None:
    """An optimizer's values that are not tensors are read, not skipped."""
    store(state, LR, saved(0.75))
    resumed = trainer(data, tmp_path / "run", resume=True)
    assert 0.75 in [group["lr"] for optimizer in resumed._train_step.optimizers for group in optimizer.param_groups]
    assert replace(TRAIN).learning_rate != 0.75
