"""Scripts that measure and print JSON lines; no test asserts on the times."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
"""Root of the checkout, the working directory of the processes that are started."""
