"""Atomic writes, chunks, and the refusal to mix settings."""

import json
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


def test_the_same_settings_continue_and_others_are_refused_by_name(tmp_path: Path) -> None:
    settings = {"max_seq_length": 384, "model": {"name": "m", "dtype": "float32"}}
    Store(tmp_path).open(settings)
    Store(tmp_path).open(settings)
    changed = {"max_seq_length": 128, "model": {"name": "m", "dtype": "bfloat16"}}
    with pytest.raises(StoredResultsError) as error:
        Store(tmp_path).open(changed)
    assert "max_seq_length was 384 and is now 128" in str(error.value)
    assert 'model.dtype was "float32" and is now "bfloat16"' in str(error.value)
    assert "model.name" not in str(error.value)
    Store(tmp_path).open(changed, overwrite=True)


def test_overwriting_forgets_every_chunk(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open({"a": 1})
    store.write_chunk("full", 0, {"values": np.zeros(1)}, {})
    write_json(tmp_path / "full" / "eval_results.json", {})
    write_json(tmp_path / "notes" / "mine.json", {})
    store.open({"a": 2}, overwrite=True)
    assert not store.is_finished("full", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chunks", "notes"]


def test_methods_are_claimed_on_their_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open_method("clustered", {"cluster_config": {"clusters": 25}})
    store.open_method("improved-clustered", {"cluster_config": {"clusters": 50}})
    with pytest.raises(StoredResultsError, match=r"method clustered, .*cluster_config\.clusters was 25 and is now 50"):
        store.open_method("clustered", {"cluster_config": {"clusters": 50}})


def test_results_without_their_settings_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "all_results.json").write_text("{}")
    with pytest.raises(StoredResultsError, match="not the settings it was made with"):
        Store(tmp_path).open({"a": 1})


def test_a_setting_that_only_one_side_has_differs() -> None:
    assert differing_settings({"a": 1}, {"a": 1, "b": None}) == ["b was not set and is now null"]
    assert differing_settings({"a": {"b": 1}}, {}) == ["a.b was 1 and is now not set"]
    assert differing_settings({"layers": {}}, {"layers": {}}) == []
