"""The two kinds of failure that are the user's to mend, each one clear line.

`launch.py` prints the message without a traceback and exits with the class's status. Anything
else that is raised is a defect of this project and keeps its traceback.
"""


# Not a ValueError: absl's flag parser would catch one and wrap it in a traceback.
class UsageError(Exception):
    """A flag, a config field or a file the user named is wrong; nothing was started."""

    exit_status = 2


class RunError(Exception):
    """Work that was well asked for could not be finished."""

    exit_status = 1
