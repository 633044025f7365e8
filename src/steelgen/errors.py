"""The one exception that is meant for the person at the keyboard."""

from __future__ import annotations


class InputError(ValueError):
    """Input that cannot be used: a file, a value or a folder the user can mend.

    The message is one line that names the file and the value. The command line prints it and exits with 2;
    every other exception is a fault of steelgen's and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of what an exception says; its type where it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
