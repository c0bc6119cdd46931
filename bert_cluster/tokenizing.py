"""Calls a tokenizer so that it stays what it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def unchanged(tokenizer: Any) -> Iterator[None]:
    """Restore truncation and padding of a fast tokenizer afterwards: a call sets them for good, and saving it writes them
    into tokenizer.json."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        yield
        return
    truncation, padding = backend.truncation, backend.padding
    try:
        yield
    finally:
        _restore(truncation, backend.enable_truncation, backend.no_truncation)
        _restore(padding, backend.enable_padding, backend.no_padding)


def _restore(settings: dict[str, Any] | None, enable: Any, disable: Any) -> None:
    if settings is None:
        disable()
    else:
        enable(**settings)
