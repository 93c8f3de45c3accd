"""Lock an open file against other processes."""

import sys
from typing import IO, Any


def lock_file(file: IO[Any]) -> bool:
    """Lock `file` until it is closed or this process ends, however. Return False if another process has locked it.

    Returns True without a lock where the system, or the file system, has none.
    """
    if sys.platform == "win32":
        return True
    import fcntl  # noqa: PLC0415 - not on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        return True
    return True
