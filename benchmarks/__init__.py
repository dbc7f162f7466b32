"""Scripts that measure and print JSON lines; none of it is asserted against a clock."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
"""The checkout, in which other processes are started."""
