"""What results call the machine."""

from pathlib import Path

from bert_cluster.processor import processor_name

TWO_CORES = """processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: Some EPYC
stepping\t: 1

processor\t: 1
model name\t: Another
"""


def test_family_and_model_tell_apart_what_shares_a_name(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(TWO_CORES)
    assert processor_name(tmp_path / "cpuinfo") == "Some EPYC (family 25, model 17)"


def test_what_is_not_told_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("model name : Some processor\n")
    assert processor_name(tmp_path / "cpuinfo") == "Some processor"
    (tmp_path / "cpuinfo").write_text("Processor : other words\n")
    assert processor_name(tmp_path / "cpuinfo") == processor_name(tmp_path / "none") != ""
