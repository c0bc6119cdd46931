"""Atomic writes, chunks, and the refusal to mix settings."""

import json
import shutil
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from bert_cluster.evaluation.errors import StoredResultsError
from bert_cluster.evaluation.store import Store, differing_settings, write_atomically, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"old": True})

    def fail(file: BinaryIO) -> None:
        file.write(b"half of the new")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"old": True}
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_results_are_as_readable_as_other_files(tmp_path: Path) -> None:
    write_json(tmp_path / "results.json", {})
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "results.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_nan_is_refused_as_it_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "results.json", {"score": float("nan")})


def test_a_chunk_comes_back_as_it_was_written(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.is_finished("full", 3)
    values = np.random.RandomState(0).standard_normal(7).astype(np.float32)
    store.write_chunk("full", 3, {"values": values}, {"seconds": 1.5, "peak": None})
    assert store.is_finished("full", 3)
    arrays, measures = store.read_chunk("full", 3)
    np.testing.assert_array_equal(arrays["values"], values)
    assert measures == {"seconds": 1.5, "peak": None}


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_chunk("full", 0, {"values": np.zeros(9)}, {})
    path = store.chunk_path("full", 0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(StoredResultsError, match=r"00000\.npz is not a whole chunk .* Delete it"):
        store.read_chunk("full", 0)


def test_whatever_is_wrong_with_a_chunks_bytes_it_is_named(tmp_path: Path) -> None:
    """A byte that zipfile reads as an unknown compression, and one that numpy finds in the header."""
    store = Store(tmp_path)
    store.write_chunk("full", 0, {"values": np.zeros(9)}, {})
    path = store.chunk_path("full", 0)
    whole = path.read_bytes()
    compression = whole.index(b"PK\x01\x02") + 10
    unknown = whole[:compression] + b"\x63" + whole[compression + 1 :]
    for damaged in (unknown, whole.replace(b"descr", b"dexcr")):
        assert damaged != whole
        path.write_bytes(damaged)
        with pytest.raises(StoredResultsError, match=r"00000\.npz is not a whole chunk .* Delete it"):
            store.read_chunk("full", 0)


SETTINGS = {"max_seq_length": 384, "model": {"name": "m", "dtype": "float32"}}
CHANGED = {"max_seq_length": 128, "model": {"name": "m", "dtype": "bfloat16"}}


def test_the_same_settings_continue_and_others_are_refused_by_name(tmp_path: Path) -> None:
    store = Store(tmp_path, SETTINGS, {"full": {}})
    store.claim()
    store.write_chunk("full", 0, {"values": np.zeros(1)}, {})
    Store(tmp_path, SETTINGS, {"full": {}}).claim()
    assert store.is_finished("full", 0)
    with pytest.raises(StoredResultsError) as error:
        Store(tmp_path, CHANGED).claim()
    assert "max_seq_length was 384 and is now 128" in str(error.value)
    assert 'model.dtype was "float32" and is now "bfloat16"' in str(error.value)
    assert "model.name" not in str(error.value)
    Store(tmp_path, CHANGED).claim(overwrite=True)


def test_settings_without_chunks_or_results_claim_nothing(tmp_path: Path) -> None:
    Store(tmp_path, SETTINGS, {"clustered": {"clusters": 25}}).claim()
    Store(tmp_path, CHANGED, {"clustered": {"clusters": 50}}).claim()
    assert json.loads((tmp_path / "chunks" / "settings.json").read_text()) == CHANGED
    assert json.loads((tmp_path / "chunks" / "clustered" / "settings.json").read_text()) == {"clusters": 50}
    write_json(tmp_path / "all_results.json", {})
    with pytest.raises(StoredResultsError, match="max_seq_length was 128 and is now 384"):
        Store(tmp_path, SETTINGS).check()


def test_checking_changes_nothing(tmp_path: Path) -> None:
    Store(tmp_path / "new", SETTINGS).check(overwrite=True)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_forgets_every_result(tmp_path: Path) -> None:
    store = Store(tmp_path, {"a": 1}, {"full": {}})
    store.claim()
    store.write_chunk("full", 0, {"values": np.zeros(1)}, {})
    write_json(tmp_path / "full" / "eval_results.json", {})
    write_json(tmp_path / "notes" / "mine.json", {})
    for name in ("all_results.json", "report.md", "plot.png"):
        (tmp_path / name).write_text("{}")
    store = Store(tmp_path, {"a": 2}, {"full": {}})
    store.claim(overwrite=True)
    assert not store.is_finished("full", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks", "notes"]


def test_methods_are_claimed_on_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path, {}, {"clustered": {"cluster_config": {"clusters": 25}}})
    store.claim()
    store.write_chunk("clustered", 0, {}, {})
    Store(tmp_path, {}, {"improved-clustered": {"cluster_config": {"clusters": 50}}}).claim()
    with pytest.raises(StoredResultsError, match=r"method clustered, .*cluster_config\.clusters was 25 and is now 50"):
        Store(tmp_path, {}, {"clustered": {"cluster_config": {"clusters": 50}}}).claim()


@pytest.mark.parametrize(("settings", "method"), [({"a": 2}, {"clusters": 1}), ({"a": 1}, {"clusters": 2})])
def test_a_chunk_of_a_run_of_other_settings_is_not_finished(
    settings: dict[str, int], method: dict[str, int], tmp_path: Path
) -> None:
    """A run that is still alive writes into the folder that another has claimed."""
    alive = Store(tmp_path, settings, {"clustered": method})
    store = Store(tmp_path, {"a": 1}, {"clustered": {"clusters": 1}})
    alive.write_chunk("clustered", 0, {}, {})
    assert alive.is_finished("clustered", 0)
    assert not store.is_finished("clustered", 0)
    with pytest.raises(StoredResultsError, match=r"00000\.npz was written by a run of other settings. Run the command"):
        store.read_chunk("clustered", 0)
    store.write_chunk("clustered", 0, {}, {})
    assert store.is_finished("clustered", 0)


def test_a_chunk_under_anothers_name_or_number_is_not_finished(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write_chunk("full", 0, {}, {})
    for method, number in (("full", 1), ("clustered", 0)):
        store.chunk_path(method, number).parent.mkdir(exist_ok=True)
        shutil.copy(store.chunk_path("full", 0), store.chunk_path(method, number))
        assert not store.is_finished(method, number)


def test_results_without_their_settings_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "all_results.json").write_text("{}")
    with pytest.raises(StoredResultsError, match="not the settings it was made with"):
        Store(tmp_path, {"a": 1}).claim()


@pytest.mark.parametrize("name", ["chunks", "full", "chunks/full"])
def test_a_file_where_a_folder_has_to_be_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    for overwrite in (False, True):
        with pytest.raises(StoredResultsError, match=f"{name} is a file, and this run needs a folder there. Move"):
            Store(tmp_path, {}, {"full": {}}).check(overwrite=overwrite)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1, 2]", r"settings\.json must be a JSON object, got \[1, 2\]. Delete its folder"),
        ("{", r"settings\.json is not JSON .* Delete its folder"),
        (None, r"settings\.json is missing, and there are chunks beside it. Delete its folder"),
    ],
)
def test_settings_that_cannot_be_read_are_named(content: str | None, message: str, tmp_path: Path) -> None:
    store = Store(tmp_path, {}, {"full": {}})
    store.write_chunk("full", 0, {}, {})
    if content is not None:
        (tmp_path / "chunks" / "settings.json").write_text(content)
    with pytest.raises(StoredResultsError, match=message):
        store.check()


def test_a_setting_that_only_one_side_has_differs() -> None:
    assert differing_settings({"a": 1}, {"a": 1, "b": None}) == ["b was not set and is now null"]
    assert differing_settings({"a": {"b": 1}}, {}) == ["a.b was 1 and is now not set"]
    assert differing_settings({"layers": {}}, {"layers": {}}) == []
