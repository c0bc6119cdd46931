"""Peak memory of one method, on its own: the process on a CPU, the allocator on a GPU."""

import contextlib
import ctypes
import gc
from pathlib import Path

import torch

RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs: 5 resets the peak resident set size (VmHWM) to the current size

OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")  # what torch's allocator says on Linux and on Windows


def is_out_of_memory(said: str) -> bool:
    """Whether an error's text says that a CPU had no memory for a tensor; torch has no class for it there."""
    return any(words in said for words in OUT_OF_MEMORY)


class PeakMemory:
    """Highest memory use since the last `reset`.

    On CUDA it is what torch's allocator handed out on the device. On a CPU it is the process's peak resident set (VmHWM),
    model and libraries included. Where the system does not let it be reset (not Linux, or /proc is read-only), `peak`
    is None: a figure that contains an earlier, hungrier method would be wrong.

    Args:
        device: where the model runs.
        status, clear_refs: files of proc(5); other ones in tests.
    """

    def __init__(
        self,
        device: torch.device,
        status: str | Path = "/proc/self/status",
        clear_refs: str | Path = "/proc/self/clear_refs",
    ):
        self.device = device
        self._status = Path(status)
        self._clear_refs = Path(clear_refs)
        self._was_reset = False

    @property
    def kind(self) -> str:
        """What the figure is, for the results file."""
        return "allocated on the GPU" if self.device.type == "cuda" else "resident memory of the process"

    def reset(self) -> None:
        """Forget earlier peaks; give freed memory back to the system first, so that it does not count for the next method."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            self._was_reset = True
            return
        _trim_heap()
        try:
            self._clear_refs.write_text(RESET_PEAK)
            self._was_reset = self._read("VmHWM") is not None
        except OSError:
            self._was_reset = False

    def peak(self) -> int | None:
        """Bytes, or None where the peak cannot be reset or the device keeps none."""
        if not self._was_reset:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return self._read("VmHWM") if self.device.type == "cpu" else None

    def _read(self, field: str) -> int | None:
        try:
            for line in self._status.read_text().splitlines():
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            pass
        return None


def _trim_heap() -> None:
    """Return free heap pages to the system (glibc keeps them, and they would count as resident)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
