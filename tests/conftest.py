"""What every test gets: fixed seeds and no network; on request poisoned memory and the backends of the operators."""

import ctypes
import ipaddress
import os
import random
import socket
import tempfile
import warnings
from collections.abc import Iterator

import loopback
import numpy as np
import pytest
import torch

# Before huggingface_hub is imported anywhere, for it reads them once: a Hub of this process, an empty cache, no login.
HUB, _ = loopback.start()
_HOME = tempfile.TemporaryDirectory(prefix="bert-cluster-tests-")
os.environ |= {
    "HF_ENDPOINT": HUB.url,
    "HF_HOME": _HOME.name,
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
for _name in (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_CACHE",
    "HF_TOKEN_PATH",
):
    os.environ.pop(_name, None)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "instruction_path: depends on the CPU instruction set; test_instruction_sets.py runs it again with each",
    )


def is_loopback(address: object) -> bool:
    """Whether a socket address stays on this machine: a path (AF_UNIX), localhost, 127.0.0.0/8 or ::1."""
    if not isinstance(address, tuple):
        return True
    host = str(address[0]).split("%")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Connecting anywhere but to this machine, or asking for a name, raises: tests must pass without a network."""
    patch = pytest.MonkeyPatch()
    lookup = socket.getaddrinfo

    def guard(method: str) -> None:
        original = getattr(socket.socket, method)

        def connect(self: socket.socket, address: object) -> object:
            if not is_loopback(address):
                raise RuntimeError(f"A test tried to connect to {address}; tests run without a network.")
            return original(self, address)

        patch.setattr(socket.socket, method, connect)

    def getaddrinfo(host: object, *arguments: object, **options: object) -> object:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not is_loopback((name,)):
            raise RuntimeError(f"A test tried to look up {name}; tests run without a network.")
        return lookup(host, *arguments, **options)

    guard("connect")
    guard("connect_ex")
    patch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    patch.undo()


@pytest.fixture
def hub() -> Iterator[loopback.Hub]:
    """The Hub that HF_ENDPOINT names, empty. Whoever pushes needs one of `loopback`'s tokens."""
    HUB.clear()
    yield HUB
    HUB.clear()


@pytest.fixture(autouse=True)
def fixed_seeds() -> Iterator[None]:
    """The same random numbers in every run and order, and the number of threads as it was."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


PERTURB = -6
"""glibc's M_PERTURB, from malloc.h."""


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Memory nobody wrote reads as NaN, so that a forgotten element fails a test.

    torch fills what ``empty`` returns with NaN (integers: the largest), also for operators written against its stable
    C++ interface, which call ``aten::empty`` through the dispatcher. Other memory of a kernel comes from malloc, which
    glibc fills with the byte 0x7f (3.4e38 as a float32).
    """
    deterministic, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(PERTURB, 0x80)
    yield
    if mallopt is not None:
        mallopt(PERTURB, 0)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill


def is_compiled() -> bool:
    from cuda_ops import _library

    return _library.status().compiled


@pytest.fixture
def compiled() -> None:
    """Skips where no compiled library is there: for promises that only the compiled operators make."""
    if not is_compiled():
        pytest.skip("the compiled operators were not built")


@pytest.fixture
def on_reference() -> Iterator[None]:
    """Every operator runs its PyTorch reference, whatever was compiled.

    Wrappers, fake kernels and autograd stay as they are.
    """
    from cuda_ops import reference, reference_backward, reference_refined, reference_refined_backward

    sources = (reference, reference_backward, reference_refined, reference_refined_backward)
    overrides = torch.library.Library("cuda_ops", "IMPL")
    if is_compiled():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
            for operator in operators():
                source = next(module for module in sources if hasattr(module, operator))
                overrides.impl(operator, getattr(source, operator), "CPU", allow_override=True)
    yield
    overrides._destroy()


@pytest.fixture(params=["compiled", "reference"])
def backend(request: pytest.FixtureRequest) -> str:
    """The test runs on the compiled operators (with the instruction set loaded) and on the PyTorch reference."""
    request.getfixturevalue("on_reference" if request.param == "reference" else "compiled")
    return str(request.param)


@pytest.fixture
def all_operators() -> list[str]:
    """Names of all operators of the namespace cuda_ops."""
    import cuda_ops

    assert cuda_ops is not None
    return operators()


def operators() -> list[str]:
    """Names of all operators of the namespace cuda_ops."""
    schemas = torch._C._jit_get_all_schemas()
    return sorted({schema.name.split("::")[1] for schema in schemas if schema.name.startswith("cuda_ops::")})
