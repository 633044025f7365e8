"""Forked children of a test, which have all imports already."""

import os
import sys
import traceback


def fork(act, out=None, err=None):
    """Runs `act` in a child, which ends with its exit code or, if it raises, with 1; returns the process id.

    Args:
        out, err: files that its standard output and error go to, may be one; None shares those of this process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        streams = {path: path.open("w", buffering=1) for path in {out, err} - {None}}
        if out is not None:
            sys.stdout = sys.__stdout__ = streams[out]
            os.dup2(streams[out].fileno(), 1)
        if err is not None:
            sys.stderr = sys.__stderr__ = streams[err]
            os.dup2(streams[err].fileno(), 2)
        code = act() or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child):
    """Waits for a child; returns its exit code, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
