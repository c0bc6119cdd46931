"""One run at a time in a folder."""

import errno
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bert_cluster.evaluation import lock
from bert_cluster.evaluation.errors import StoredResultsError
from bert_cluster.evaluation.lock import sole_run

HOLD = """
import sys
from bert_cluster.evaluation.lock import sole_run
with sole_run(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], **pipes) as first:  # type: ignore[call-overload]
        assert first.stdout.readline() == "held\n"
        message = "Another run is at work in .* Wait until it has ended, or choose"
        with pytest.raises(StoredResultsError, match=message), sole_run(tmp_path):
            pytest.fail("two runs in one folder")
        first.kill()
    with sole_run(tmp_path):
        pass


def test_a_run_that_leaves_nothing_leaves_no_folder(tmp_path: Path) -> None:
    with sole_run(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    assert list(tmp_path.iterdir()) == []
    with sole_run(tmp_path):
        pass
    with sole_run(tmp_path / "a"):
        (tmp_path / "a" / "results").write_text("")
    assert (tmp_path / "a" / "results").exists()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", fail)
    with sole_run(tmp_path):
        pass
    monkeypatch.setattr(lock, "fcntl", None)
    with sole_run(tmp_path):
        pass
