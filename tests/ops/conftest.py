"""Every operator test runs with poisoned memory: what an operator forgets to write is NaN."""

import pytest


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory: None) -> None:
    """Applies :func:`poisoned_memory` to all tests of this folder."""
