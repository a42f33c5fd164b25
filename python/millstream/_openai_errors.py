"""Our exceptions under openai-python's, so that ``except openai.RateLimitError`` catches ours as well.

openai is neither needed nor imported. Once a program that has imported it makes one of our exceptions, each class of
ours gets openai's class of that name as a further, last base. So there is still one class of a name: its ``repr``, its
pickles and ``except`` clauses on our own names are what they are without openai. Nothing of openai's classes runs, as
ours come first: an error has our attributes, and no ``request`` and no ``response``, which are httpx's.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from millstream import exceptions

if TYPE_CHECKING:
    from types import ModuleType

# Parents before children. Those that openai has no name for, and no parent with one, are under its root.
_THEIRS: dict[str, str] = {
    "BatchStoppedError": "OpenAIError",
    "ConfigurationError": "OpenAIError",
    "ClientClosedError": "OpenAIError",
    "InternalError": "OpenAIError",
    "JournalError": "OpenAIError",
    "RefusalError": "OpenAIError",
} | {
    name: name
    for name in (
        "LengthFinishReasonError",
        "ContentFilterFinishReasonError",
        "APIError",
        "APIResponseValidationError",
        "APIStatusError",
        "APIConnectionError",
        "APITimeoutError",
        "BadRequestError",
        "AuthenticationError",
        "PermissionDeniedError",
        "NotFoundError",
        "ConflictError",
        "UnprocessableEntityError",
        "RateLimitError",
        "InternalServerError",
    )
}


def join(openai: ModuleType) -> bool:
    """Put our exceptions under those of the module ``openai``.

    Returns:
        Whether every class was found. Not so while openai is being imported, or in one that is older.
    """
    complete = True
    for name, name_there in _THEIRS.items():
        ours, theirs = getattr(exceptions, name), getattr(openai, name_there, None)
        if not (isinstance(theirs, type) and issubclass(theirs, Exception)):
            complete = False
        elif not issubclass(ours, theirs):
            # A module that only calls itself openai may have a tree that ours does not fit under.
            with suppress(TypeError):
                ours.__bases__ += (theirs,)
    return complete
