"""The exception for user errors, and the wording of its messages."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_MAX_VALUE_LENGTH = 80
"""Characters of a value that a message quotes."""


class InputError(ValueError):
    """Raised for input that the user can fix: a file, a value, a folder.

    The message is one line that names the file and the value. The command line prints it and exits with code 2; any
    other exception is a bug and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or the name of its type if the message is empty."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def describe_problem(problem: ErrorDetails) -> str:
    """Formats a pydantic error: the location in the JSON document, the message and the value."""
    location = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{location}: is missing"
    # pydantic would name the class.
    message = "must be a JSON object" if problem["type"] == "model_type" else problem["msg"]
    message = message.removeprefix("Value error, ")
    if not isinstance(problem["input"], dict):
        message += f" (got {quote_value(problem['input'])})"
    return f"{location}: {message}" if location else message


def quote_value(value: Any) -> str:
    """Formats a value as JSON, truncated if it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]} …"
