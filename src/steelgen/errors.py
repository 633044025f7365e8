"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_LONGEST = 80
"""Characters of a value that a message repeats."""


class InputError(ValueError):
    """Input that cannot be used: a file, a value or a folder the user can mend.

    The message is one line that names the file and the value. The command line prints it and exits with 2;
    every other exception is a fault of steelgen's and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its type where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def describe_problem(problem: ErrorDetails) -> str:
    """The place in a JSON document, what pydantic finds wrong there, and the value where it is short."""
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
    """A value as JSON, its beginning where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"
