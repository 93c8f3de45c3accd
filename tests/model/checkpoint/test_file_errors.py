"""Files that cannot be read: every command says which one and why, without an errno."""

import json
import os
from pathlib import Path

import pytest

import thoughtbubbles
from thoughtbubbles.model import Thoughtbubbles, Tokenizer, save_checkpoint

COMMANDS = ["inspect", "convert"]


@pytest.fixture
def folder(tmp_path: Path, model: Thoughtbubbles, tokenizer: Tokenizer) -> Path:
    save_checkpoint(tmp_path / "small", model, tokenizer, {})
    return tmp_path / "small"


def error(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """Return the message of a command that is refused."""
    assert thoughtbubbles.main(command) == 2
    message = capsys.readouterr().err
    assert "Errno" not in message
    assert "os error" not in message
    assert "tokenizer 'gpt2'" not in message, "the mistake is reported before a tokenizer is needed"
    return message


def arguments(command: str, path: Path) -> list[str]:
    return [command, str(path)] + (["out"] if command == "convert" else [])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_path_that_is_no_checkpoint(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    assert f"{link} is a symbolic link to {tmp_path / 'gone'}, which does not exist" in error(
        capsys, *arguments(command, link)
    )
    assert "no such f" in error(capsys, *arguments(command, tmp_path / "nowhere"))
    assert "/config.json: no such file" in error(capsys, *arguments(command, Path("/")))
    device = error(capsys, *arguments(command, Path("/dev/null")))
    assert "/dev/null: not a folder" in device or "/dev/null is neither a folder nor a regular file" in device


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["absent", "link", "folder", "pipe"])
def test_a_config_that_cannot_be_read(
    command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.json"
    if kind == "link":
        config.symlink_to("gone")
    elif kind == "folder":
        config.mkdir()
    elif kind == "pipe":
        os.mkfifo(config)
    reason = {"absent": ": no such file or folder", "link": " is a symbolic link to gone, which does not exist"}
    assert f"{config}{reason.get(kind, ' is not a regular file')}" in error(capsys, *arguments(command, tmp_path))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_config_without_permission(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, **_options: object) -> str:  # root, as which tests may run, may read everything
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(Path, "read_text", refuse)
    assert f"{tmp_path / 'config.json'}: permission denied" in error(capsys, *arguments(command, tmp_path))


def test_weights_that_are_a_broken_link(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")
    assert "is a symbolic link to gone" in error(capsys, "inspect", str(folder))


def test_a_checkpoint_of_ours_is_already_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source in (folder, folder / "model.safetensors"):
        assert f"{folder} is already a Thoughtbubbles checkpoint" in error(capsys, "convert", str(source), "out")


def test_settings_are_checked_before_the_tokenizer_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"config": 5}))
    assert "not a JSON object of settings" in error(capsys, "convert", str(tmp_path), "out")
