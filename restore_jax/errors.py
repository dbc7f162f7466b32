"""The two kinds of error that a user can act on, each reported in one clear line.

A command prints the message without a traceback and exits with the status of the class, see
`exit_on_failure`. Any other exception is a bug in this project and keeps its traceback.
"""

import _thread
import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

# As a shell reports a program that SIGPIPE has ended.
_BROKEN_PIPE = 141


# Not a ValueError: absl's flag parser would catch one and wrap it in a traceback.
class UsageError(Exception):
    """A flag, a config field or a file the user named is wrong; nothing was started."""

    exit_status = 2


class RunError(Exception):
    """The request was valid, but the work failed."""

    exit_status = 1


def one_line(error: BaseException, most: int = 200) -> str:
    """Returns an error's message on one line, for a message of this project to quote.

    Args:
        error: of another library, whose message may have many lines or none.
        most: the largest number of characters.

    Returns:
        The message, cut if need be; the name of the error's class if there is none.
    """
    return " ".join(str(error).split())[:most] or type(error).__name__


@contextlib.contextmanager
def exit_on_failure() -> Iterator[None]:
    """Turns an error in its body into one line on stderr and an exit status."""
    dropped = sys.unraisablehook
    sys.unraisablehook = functools.partial(_interrupt_again, dropped)
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads what is printed, such as `head`, has read enough. Python would try again
        # to write the rest on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_BROKEN_PIPE)
    except (UsageError, RunError) as error:
        _exit(str(error), error.exit_status)
    except OSError as error:
        if error.filename is None:
            raise
        # For example a full disk or missing permission.
        _exit(f"{error.filename}: {error.strerror}", RunError.exit_status)
    except KeyboardInterrupt:
        _exit("stopped; run the same command again to resume from what is saved", 130)
    finally:
        sys.unraisablehook = dropped


def _interrupt_again(
    dropped: Callable[[Any], object], unraisable: "sys.UnraisableHookArgs"
) -> None:
    """Repeats a Ctrl-C that came where Python drops exceptions.

    JAX has a callback in the garbage collector, which runs anywhere.
    """
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        # Not at once, which would still be here.
        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        dropped(unraisable)


def _exit(line: str, status: int) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
