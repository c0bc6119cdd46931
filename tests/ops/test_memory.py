"""Memory is linear in the number of tokens: nothing of size N x N or N x K x D exists, forward or backward."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.usefixtures("compiled"), pytest.mark.cpu]

MEASURE = """
import re, torch, cuda_ops

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1))

def run(tokens):
    q, k, v = (torch.randn(1, 1, tokens, 64, requires_grad=True) for _ in range(3))
    out = {call}
    out.sum().backward()

planes = torch.randn(63, 64)
run(64)
before = peak()
run({tokens})
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux' /proc")
@pytest.mark.parametrize(
    ("call", "tokens", "forbidden"),
    [
        ("cuda_ops.improved_clustered(q, k, v, None, planes)[0]", 20_011, 20_011 * 32 * 64 * 4),
        ("cuda_ops.clustered(q, k, v, None, planes)[0]", 20_011, 20_011 * 32 * 64 * 4),
        ("cuda_ops.full_attention(q, k, v)[0]", 6_007, 6_007 * 6_007 * 4),
    ],
    ids=["improved_clustered", "clustered", "full_attention"],
)
def test_peak_memory(call: str, tokens: int, forbidden: int) -> None:
    program = MEASURE.format(call=call, tokens=tokens)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    # q, k, v, out and their gradients are 8 tensors (N, D); as much again for decisions and scratch.
    needed = 16 * tokens * 64 * 4 + 2**24
    assert needed < forbidden
    assert int(result.stdout) < needed, f"{int(result.stdout) / 2**20:.0f} MiB for {tokens} tokens"
