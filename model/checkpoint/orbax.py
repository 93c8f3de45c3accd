"""Read the authors' JAX checkpoints: an Orbax tree of flax modules, as a state dict of their PyTorch release.

    params.wte                                 transformer.wte.weight
    params.blocks_3.attn.c_attn.kernel         transformer.h.3.attn.c_attn.weight, transposed
    params.blocks_3.ln_1.weight                transformer.h.3.ln_1.weight
    params.blocks_3.fork_embedding             transformer.h.3.fork_embedding

Arrays in a flax `Partitioned` box have `.value` after their name. tensorstore reads them, which Orbax writes them with;
Orbax itself would need JAX.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thoughtbubbles.model.extras import install_command
from thoughtbubbles.model.files.untrusted import read_json_object

METADATA = "_METADATA"
"""The file of an Orbax tree that names its arrays."""
NAMES = (
    (r"params\.wte", "transformer.wte.weight"),
    (r"params\.blocks_(\d+)\.(.+)", r"transformer.h.\1.\2"),
    (r"params\.(ln_f\..+)", r"transformer.\1"),
)


class OrbaxTree:
    """The arrays of an Orbax tree, which are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        """Raise `ValueError` if the folder is not such a tree, or the extra that reads it is missing."""
        metadata = read_json_object(folder / METADATA)
        try:
            paths = [[key["key"] for key in entry["key_metadata"]] for entry in metadata["tree_metadata"].values()]
            stored = [".".join(map(str, path)) for path in paths]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / METADATA} is not the index of an Orbax tree") from error
        self._folder = folder
        self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
        self._stored = {release_name(name): name for name in stored}

    @property
    def names(self) -> list[str]:
        """The names of all arrays, those of the model as in the PyTorch release."""
        return list(self._stored)

    def read(self, names: Iterable[str]) -> Mapping[str, Tensor]:
        """Return these arrays, on the CPU. Raise `ValueError` naming one that cannot be read."""
        try:
            import tensorstore  # noqa: PLC0415 - the extra `jax`
        except ModuleNotFoundError:
            raise ValueError(f"{self._folder}: Orbax needs packages: {install_command('jax')}") from None
        return {name: self._tensor(tensorstore, name) for name in names}

    def _tensor(self, tensorstore: Any, name: str) -> Tensor:  # noqa: ANN401 - a module
        base = f"file://{self._folder.resolve()}/"
        stored = self._stored[name]
        spec = {"driver": self._driver, "kvstore": {"driver": "ocdbt", "base": base, "path": f"{stored}/"}}
        try:
            array = tensorstore.open(spec, read=True).result().read().result()
        except (ValueError, OSError) as error:
            raise ValueError(f"{self._folder}: {stored} cannot be read: {str(error).partition(' [')[0]}") from error
        bfloat16 = array.dtype.name == "bfloat16"  # which is not NumPy's own
        tensor = torch.from_numpy(array.astype("float32") if bfloat16 else array)
        tensor = tensor.bfloat16() if bfloat16 else tensor
        return tensor.T.contiguous() if stored.removesuffix(".value").endswith(".kernel") else tensor


def release_name(stored: str) -> str:
    """Return the PyTorch release's name of an array; one that is not of the model, such as a moment, keeps its own."""
    name = stored.removesuffix(".value")
    for pattern, replacement in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(r"\.kernel$", ".weight", re.sub(pattern, replacement, name))
    return name
