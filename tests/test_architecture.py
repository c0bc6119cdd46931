"""Imports go one way: glue_eval | squad_eval -> bert_cluster.evaluation -> bert_cluster -> cuda_ops -> torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Part of the project -> the parts that it may import besides itself.
ALLOWED: dict[str, set[str]] = {
    "cuda_ops": set(),
    "bert_cluster": {"cuda_ops"},
    "bert_cluster.evaluation": {"bert_cluster", "cuda_ops"},
    "glue_eval": {"bert_cluster.evaluation", "bert_cluster", "cuda_ops"},
    "squad_eval": {"bert_cluster.evaluation", "bert_cluster", "cuda_ops"},
}
PARTS = {*ALLOWED, "tests", "examples", "benchmarks", "build_support"}
# What `import bert_cluster` must not bring along, unless transformers itself does.
HEAVY = {"datasets", "evaluate", "accelerate", "matplotlib", "peft", "sentence_transformers"}


def part_of(module: str) -> str | None:
    """The part of the project that a dotted name belongs to, None for other packages."""
    if module == "bert_cluster.evaluation" or module.startswith("bert_cluster.evaluation."):
        return "bert_cluster.evaluation"
    first = module.split(".")[0]
    return first if first in PARTS else None


def imports(source: str, package: str) -> set[str]:
    """Dotted names that a file imports, anywhere in it; `package` is the one it lies in, for relative imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def breaches(source: str, module: str) -> set[str]:
    """The imports of a module that go the wrong way."""
    part = part_of(module)
    assert part is not None
    found = {part_of(name) for name in imports(source, module)} - {None, part}
    return {str(other) for other in found} - ALLOWED[part]


def project_files() -> dict[str, Path]:
    """Module name of the package that each file lies in -> file."""
    return {
        ".".join(path.relative_to(ROOT).parent.parts) + f":{path.name}": path
        for package in ("cuda_ops", "bert_cluster", "glue_eval", "squad_eval")
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@pytest.mark.parametrize("name", project_files())
def test_imports_go_one_way(name: str) -> None:
    source = project_files()[name].read_text(encoding="utf-8")
    assert breaches(source, name.split(":")[0]) == set()


def test_every_part_has_files() -> None:
    parts = {part_of(name.split(":")[0]) for name in project_files()}
    assert parts == set(ALLOWED)


@pytest.mark.parametrize(
    ("source", "module", "found"),
    [
        ("import bert_cluster", "cuda_ops", {"bert_cluster"}),
        ("def f():\n    from bert_cluster.evaluation import runner", "bert_cluster", {"bert_cluster.evaluation"}),
        ("from bert_cluster import evaluation", "bert_cluster", {"bert_cluster.evaluation"}),
        ("from . import evaluation", "bert_cluster", {"bert_cluster.evaluation"}),
        ("from .evaluation.runner import run", "bert_cluster", {"bert_cluster.evaluation"}),
        ("import glue_eval.tasks", "squad_eval", {"glue_eval"}),
        ("from squad_eval import answers", "bert_cluster.evaluation", {"squad_eval"}),
        ("from tests import oracle", "cuda_ops", {"tests"}),
        ("from .. import config\nfrom ..config import ClusterConfig", "bert_cluster.evaluation", set()),
        ("import torch, numpy\nimport cuda_ops", "bert_cluster", set()),
        ("from . import ops\nimport cuda_ops.checks", "cuda_ops", set()),
    ],
)
def test_the_check_itself(source: str, module: str, found: set[str]) -> None:
    assert breaches(source, module) == found


def loaded_after(statement: str) -> set[str]:
    """Names of the heavy packages that a fresh interpreter has loaded after a statement."""
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return HEAVY & set(done.stdout.split())


def test_importing_the_package_is_light() -> None:
    assert loaded_after("import bert_cluster") <= loaded_after("from transformers import PreTrainedModel, BertModel")


def test_importing_the_operators_needs_torch_only() -> None:
    program = "import cuda_ops, sys; print('transformers' in sys.modules, 'bert_cluster' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
