"""Files that are sent and received: a form around one, and one that is there whole or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# Text fields, and the file's field, name and type.
Form = tuple[list[tuple[str, str]], str, str, str]


def form_of(
    file: str | os.PathLike[str],
    fields: Mapping[str, str] | None,
    name: str,
    filename: str | None,
    content_type: str,
) -> Form:
    """What the native module makes a form of."""
    filename = os.path.basename(os.fspath(file)) if filename is None else filename
    return list((fields or {}).items()), name, filename, content_type


@contextmanager
def replacing(file: str | os.PathLike[str]) -> Iterator[str]:
    """The path of an empty file beside ``file``, readable by its owner alone, that takes its place at the end.

    If the block fails, nothing of it is left and ``file`` is as it was.
    """
    import tempfile  # not at the top: few need it

    folder, name = os.path.split(os.fspath(file))
    descriptor, beside = tempfile.mkstemp(prefix=f".{name}.", suffix=".part", dir=folder or ".")
    os.close(descriptor)
    try:
        yield beside
        os.replace(beside, file)
    except BaseException:
        os.unlink(beside)
        raise
