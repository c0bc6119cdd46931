"""The comparison with a git ref: what is a regression, what each failure says, and that nothing is left behind."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import compare
import compare_side
import pytest
import torch

import cuda_ops

COUNTED = {"before": {"a": 100, "b": 100, "c": 100, "gone": 5}, "now": {"a": 110, "b": 111, "c": 50, "new": 5}}
TIMED: dict[str, dict[str, float]] = {
    "before": {"a": 1.0, "b": 1.0, "c": 1.0, "gone": 1.0},
    "now": {"a": 9.0, "b": 1.0, "c": 1.0, "new": 1.0},
}


def test_over_ten_percent_more_instructions_is_a_regression() -> None:
    rows = compare.rows(COUNTED, TIMED)
    assert [name for name, row in rows.items() if row["regression"]] == ["b"]
    assert rows["a"]["milliseconds"] == {"before": 1.0, "now": 9.0, "ratio": 9.0}
    assert rows["new"]["instructions"] == {"before": None, "now": 5, "ratio": None}
    lines = compare.table(rows, "v1")
    assert [line.split()[0] for line in lines if line.endswith("REGRESSION")] == ["b"]
    assert next(line for line in lines if line.startswith("gone")).split()[2:4] == ["–", "–"]


def test_counts_are_read_from_what_callgrind_writes(tmp_path: Path) -> None:
    for number, (name, total) in enumerate([("a, with gradient", 11), ("b", 7)]):
        text = f"version: 1\ndesc: Trigger: Client Request: {name}\nsummary: {total}\n\ntotals: {total}\n"
        (tmp_path / f"counts.{number}").write_text(text)
    (tmp_path / "counts.9").write_text("desc: Trigger: Program termination\ntotals: 99\n")
    (tmp_path / "counts").touch()
    assert list(compare.counts(tmp_path).items()) == [("a, with gradient", 11), ("b", 7)]


@pytest.mark.parametrize("regression", [True, False])
def test_a_regression_is_the_exit_status(
    regression: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = COUNTED if regression else {"before": COUNTED["before"], "now": COUNTED["before"]}
    made = {"ref": "v1", "operators": compare.rows(counted, TIMED)}
    monkeypatch.setattr(compare, "require_programs", lambda: None)
    monkeypatch.setattr(compare, "compare", lambda *_: made)
    monkeypatch.setattr(sys, "argv", ["compare.py", "v1", "--output", str(tmp_path / "found.json")])
    if regression:
        with pytest.raises(SystemExit) as ended:
            compare.main()
        assert ended.value.code == 1
    else:
        compare.main()
    printed = capsys.readouterr()
    assert ("more than 10% more instructions than v1" in printed.err) == regression
    written = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert {"command", "date", "machine", "threads", "versions", "ref", "operators"} <= set(written)


@pytest.mark.parametrize(
    ("program", "remedy"),
    [("git", "The other side comes from a git ref: install git"), ("valgrind", "apt install valgrind")],
)
def test_a_missing_program_is_named(program: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else f"bin/{name}")
    with pytest.raises(SystemExit, match=f"{program} is not on the PATH. .*{remedy}"):
        compare.require_programs()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository of one commit in place of this one; its build fails."""
    if shutil.which("git") is None:
        pytest.skip("there is no git here")
    folder = tmp_path / "clone"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(variable)
    (folder / "setup.py").write_text("print('compiling\\n' * 50 + 'no such header')\nraise SystemExit(3)\n")
    identity = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for words in (["init", "-q"], ["add", "setup.py"], [*identity, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    monkeypatch.setattr(compare, "ROOT", folder)
    return folder


def worktrees(folder: Path) -> int:
    listed = subprocess.run(["git", "worktree", "list"], cwd=folder, capture_output=True, text=True, check=True)
    return len(listed.stdout.splitlines())


def test_an_unknown_ref_is_named(clone: Path) -> None:
    with pytest.raises(SystemExit, match="'no-such-ref' names no commit here. Give a branch, a tag or a commit"):
        compare.commit_of("no-such-ref")
    assert len(compare.commit_of("HEAD")) == 40


def test_a_folder_without_git_is_refused(
    clone: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "ROOT", tmp_path_factory.mktemp("plain"))
    with pytest.raises(SystemExit, match="This folder is no git clone"):
        compare.commit_of("HEAD")


def test_a_failed_build_shows_the_end_of_its_log(clone: Path) -> None:
    with (
        pytest.raises(SystemExit) as ended,
        compare.checked_out(compare.commit_of("HEAD")) as tree,
    ):
        assert (tree / "setup.py").exists() and worktrees(clone) == 2
        compare.build(tree, "v1")
    message = str(ended.value)
    assert message.startswith("v1 could not be built (status 3). The end of the log:\ncompiling\n")
    assert message.endswith("no such header") and message.count("\n") == compare.LOG_LINES
    assert worktrees(clone) == 1 and not tree.exists()


def test_an_interruption_removes_the_worktree(clone: Path) -> None:
    with pytest.raises(KeyboardInterrupt), compare.checked_out(compare.commit_of("HEAD")) as tree:
        raise KeyboardInterrupt
    assert worktrees(clone) == 1 and not tree.parent.exists()


def test_an_interruption_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "require_programs", lambda: None)
    monkeypatch.setattr(compare, "compare", interrupted)
    monkeypatch.setattr(sys, "argv", ["compare.py", "v1"])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert ended.value.code == 130
    assert "Interrupted: nothing was compared" in capsys.readouterr().err


def test_the_library_must_be_there_and_current(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not compiled: cuda_ops/_C.abi3.so is missing. Build them: python setup.py"):
        compare.require_current_library(tmp_path)
    source = tmp_path / "cuda_ops" / "csrc" / "cpu" / "hash.cpp"
    source.parent.mkdir(parents=True)
    source.touch()
    library = tmp_path / compare.LIBRARY
    library.touch()
    compare.require_current_library(tmp_path)
    os.utime(library, (0, time.time() - 60))
    with pytest.raises(SystemExit, match="cuda_ops/csrc/cpu/hash.cpp is newer than cuda_ops/_C.abi3.so"):
        compare.require_current_library(tmp_path)


def test_headers_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler here")
    marks = tmp_path / "marks.cpp"
    marks.write_text("#include <no/such/header.h>\n")
    monkeypatch.setattr(compare, "MARKS", marks)
    with pytest.raises(SystemExit, match="Are valgrind's headers installed .* The compiler says:\n.*no/such/header.h"):
        compare.compile_marks(tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="There is no C\\+\\+ compiler"):
        compare.compile_marks(tmp_path)


def test_a_side_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = tmp_path / "side.py"
    side.write_text("import os, sys\nsys.exit('wrong in ' + os.environ['PYTHONPATH'])\n")
    monkeypatch.setattr(compare, "SIDE", side)
    with pytest.raises(SystemExit, match=f"The side in {tmp_path} failed \\(status 1\\):\nwrong in {tmp_path}"):
        compare.run_side(tmp_path, [], {})


def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run_side(root: Path, flags: list[str], variables: dict[str, str]) -> str:
        order.append(root.name)
        return json.dumps({"a": float(len(order))})

    monkeypatch.setattr(compare, "run_side", run_side)
    found = compare.times({"before": Path("x"), "now": Path("y")}, 64, 3, 1)
    assert order == ["y", "x", "x", "y", "y", "x"]
    assert found == {"before": {"a": 3.0}, "now": {"a": 4.0}}


def test_each_side_is_checked_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    compare_side.check()
    right = cuda_ops.refined_clustered
    monkeypatch.setattr(cuda_ops, "refined_clustered", lambda *given, **budgets: (right(*given, **budgets)[0] + 1e-3,))
    with pytest.raises(SystemExit, match="refined_clustered is off by 1.0e-03 at 97 tokens.*nothing is compared"):
        compare_side.check()


def test_what_an_earlier_state_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(cuda_ops, "refined_clustered")
    names = ["full_attention", "clustered", "improved_clustered"]
    expected = [one for name in names for one in (name, f"{name}, with gradient")]
    assert list(compare_side.milliseconds(64, 3, 2)) == expected
    gradients = compare_side.calls(64, 3)["improved_clustered, with gradient"]()
    assert [gradient.shape for gradient in gradients] == [torch.Size((1, 3, 64, 64))] * 3


def test_another_package_first_on_the_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cuda_ops was imported from .*, expected .*Is another one first on the path"):
        compare_side.require_compiled(tmp_path)
