"""What every test of the CUDA operators gets: poisoned memory, and the operators compiled for the host."""

import host_library
import pytest

from build_support import compiler


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory: None) -> None:
    """Applies :func:`poisoned_memory` to all tests of this folder: what an operator forgets to write is NaN."""


@pytest.fixture(scope="session")
def host() -> None:
    """The operators compiled for the host, in `torch.ops.cuda_ops_host`."""
    if compiler.find_compiler() is None:
        pytest.skip("there is no C++ compiler")
    host_library.load()


@pytest.fixture(params=host_library.ORDERS)
def order(host: None, request: pytest.FixtureRequest) -> str:
    """Each order of threads in turn."""
    host_library.set_order(request.param)
    return request.param
