"""A short run of every operator and gradient for compute-sanitizer, which slows kernels down a hundred times.

    make sanitize    # memcheck, racecheck, initcheck and synccheck, one after the other

Small shapes with holes in their masks, in all types; one longer row, so that kernels which cut a row take several parts.
"""

import argparse
import itertools
import sys
from pathlib import Path

import torch

for folder in (".", "..", "../ops"):
    sys.path.insert(0, str(Path(__file__).resolve().parent / folder))

from everything import run_backward, run_forward  # noqa: E402
from operator_cases import Case  # noqa: E402
from refined_cases import refined  # noqa: E402

CASES = [
    Case(B=3, H=4, H_kv=2, N=61, D=19, C=5, K=7, P=67, exact_below=12),
    Case(B=1, H=2, N=131, D=64, C=25, K=32, P=63, mask="holes"),
    Case(B=1, H=1, N=300, D=136, C=130, K=7, P=63, mask="holes"),
]
LONG = Case(B=1, H=1, N=2053, D=16, C=7, K=33, P=63, mask="holes")


def run(case: Case, dtype: torch.dtype, device: str) -> None:
    """Every operator and its gradient."""
    inputs = case.inputs(dtype)
    moved = {name: getattr(inputs, name).to(device) for name in ("q", "k", "v", "mask", "planes")}
    inputs = inputs.changed(**moved)
    grad = torch.ones_like(inputs.q)
    run_forward(inputs)
    run_backward(inputs, grad)
    shape = {name: getattr(case, name) for name in ("B", "H", "H_kv", "N", "D", "C", "K", "exact_below")}
    method = refined(dtype, M=8, W=3, S=64, **shape)
    leaves = [moved[name].detach().requires_grad_() for name in ("q", "k", "v")]
    longer = (2 * case.N // 3, case.C + 2, case.K + 3, 9, 80)
    out = method.changed(q=leaves[0], k=leaves[1], v=leaves[2], mask=moved["mask"], longer=longer).run()[0]
    torch.autograd.grad(out, leaves, grad)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU.")
    for case, dtype in itertools.product(CASES, (torch.float32, torch.bfloat16, torch.float16)):
        run(case, dtype, device)
    run(LONG, torch.bfloat16, device)
    if device == "cuda":
        torch.cuda.synchronize()
    print("every operator ran")


if __name__ == "__main__":
    main()
