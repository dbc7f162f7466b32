"""The command line: the flags, and the commands that they select."""
