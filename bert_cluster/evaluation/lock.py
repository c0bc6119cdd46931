"""One run at a time in an output folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from bert_cluster.evaluation.errors import StoredResultsError

try:
    import fcntl
except ImportError:  # a system without flock, such as Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def sole_run(folder: str | Path) -> Iterator[None]:
    """Hold the folder for this run: made if it is not there, and taken away again if the run leaves nothing in it.

    The lock is on the folder itself, ends with the process, and is left out where a file system has none.

    Raises:
        StoredResultsError: another run holds the folder.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = _locked(folder)
    try:
        yield
    finally:
        with suppress(OSError):  # there are results in it
            for path in made:
                path.rmdir()
        if handle is not None:
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """An open file that holds the lock until it is closed, None where locking is impossible."""
    if fcntl is None:
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise StoredResultsError(
                f"Another run is at work in {folder}. Wait until it has ended, or choose another --output_dir."
            ) from error
        return None
    return handle
