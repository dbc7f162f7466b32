"""The two kinds of failure that are the user's to mend, each one clear line.

A command prints the message without a traceback and exits with the class's status, see `told`.
Anything else that is raised is a defect of this project and keeps its traceback.
"""

import contextlib
import sys
from collections.abc import Iterator


# Not a ValueError: absl's flag parser would catch one and wrap it in a traceback.
class UsageError(Exception):
    """A flag, a config field or a file the user named is wrong; nothing was started."""

    exit_status = 2


class RunError(Exception):
    """Work that was well asked for could not be finished."""

    exit_status = 1


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Ends the program with one line and the status where what is done within fails."""
    try:
        yield
    except (UsageError, RunError) as error:
        _end(str(error), error.exit_status)
    except OSError as error:
        if error.filename is None:
            raise
        # A full disk, a wrong permission.
        _end(f"{error.filename}: {error.strerror}", RunError.exit_status)
    except KeyboardInterrupt:
        _end("stopped; the same command goes on from what is saved", 130)


def _end(line: str, status: int) -> None:
    print(f"error: {line}", file=sys.stderr)
    sys.exit(status)
