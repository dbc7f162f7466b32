"""A page and an HTTP endpoint that restore photographs with the code of `--mode=restore`."""
