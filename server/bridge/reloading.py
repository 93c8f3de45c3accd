"""Replace the weights of an engine while it serves.

The checkpoint is read on a thread of its own, beside the steps. If it fits, requests that have not started then wait,
those that have started finish, and between two steps the weights are replaced. If they take too long, the load is given
up, so that the others do not wait for ever.
"""

import logging
import time
from threading import Thread

from thoughtbubbles.engine import Engine
from thoughtbubbles.model import lack_of_memory
from thoughtbubbles.server.bridge.commands import LoadWeights
from thoughtbubbles.server.bridge.errors import LoadError, LoadFailedError, LoadRefusedError, LoadTimeoutError
from thoughtbubbles.server.bridge.weights import NewWeights, read_weights
from thoughtbubbles.server.core import ServedModel

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.02
"""How often a loop without work looks whether the checkpoint has been read."""


class Reloader:
    """The load that is in progress, if any. Belongs to the engine's loop."""

    def __init__(self, engine: Engine, served: ServedModel) -> None:
        self._engine = engine
        self._served = served
        self._thread: Thread | None = None
        self._command = LoadWeights("", 0.0)
        self._read: NewWeights | Exception = RuntimeError("nothing was read")
        self._paused_since: float | None = None

    @property
    def loading(self) -> bool:
        """Whether a load is in progress."""
        return self._thread is not None

    def begin(self, command: LoadWeights) -> None:
        """Start to read the command's checkpoint. No load may be in progress."""
        assert not self.loading, "one load at a time"
        self._command = command
        self._thread = Thread(target=self._read_checkpoint, name="checkpoint", daemon=True)
        self._thread.start()

    def advance(self) -> NewWeights | LoadError | None:
        """Go on with the load, between two steps. Return how it ended, or None if it has not, or there is none.

        With an error the weights from before are served.
        """
        if self._thread is None or self._thread.is_alive():
            return None
        outcome = self._replace(self._read) if isinstance(self._read, NewWeights) else self._refuse(self._read)
        if outcome is not None:
            self._end()
        return outcome

    def _read_checkpoint(self) -> None:
        try:
            self._read = read_weights(self._command.checkpoint, self._engine.model, self._served)
        except Exception as error:
            self._read = error

    def _replace(self, new: NewWeights) -> NewWeights | LoadError | None:
        """Replace the weights, if no request computes with the ones from before any more."""
        if self._paused_since is None:
            self._paused_since = time.monotonic()
            self._engine.pause_admission()
        waited = time.monotonic() - self._paused_since
        if not self._engine.drained:
            return self._give_up() if waited > self._command.wait_seconds else None
        try:
            self._engine.replace_weights(new.tensors)
        except Exception as error:
            return self._fail(error)
        logger.info(
            "weights %s of %s are served; requests waited %.3f s for them", new.version, self._command.checkpoint,
            time.monotonic() - self._paused_since,
        )  # fmt: skip
        return new

    def _refuse(self, error: Exception) -> LoadError:
        if not isinstance(error, ValueError | OSError):
            return self._fail(error)
        logger.warning("weights are not replaced: %s", error)
        return LoadRefusedError(str(error))

    def _give_up(self) -> LoadError:
        error = LoadTimeoutError(self._command.wait_seconds)
        logger.warning("weights of %s are not replaced: %s", self._command.checkpoint, error)
        return error

    def _fail(self, error: Exception) -> LoadError:
        logger.error("weights of %s are not replaced", self._command.checkpoint, exc_info=error)
        return LoadFailedError(lack_of_memory(error) or type(error).__name__)

    def _end(self) -> None:
        self._engine.resume_admission()
        self._thread = self._paused_since = None
        self._read = RuntimeError("nothing was read")  # frees the weights from before
