"""A served model of a few parameters, in this process."""

import contextlib
import threading
import time

import uvicorn

from restore_jax.checkpoints import trust_file
from restore_jax.inference import restorer
from restore_jax.serve import app, results, worker
from tests.support import shipping

MAX_MEGAPIXELS = 2


class Gated:
    """A model that restores nothing until its gate opens."""

    def __init__(self, model, gate):
        self._model, self._gate = model, gate

    def with_options(self, check, **options):
        while not self._gate.wait(0.01):
            check(0.0)
        return self._model.with_options(check, **options)


def make(folder, *, max_bytes=4_000_000, seconds=60, max_waiting=8, gate=None, trust=None):
    """Returns an application, its worker, and the weights file of its only model."""
    weights = shipping.write(folder / "tiny.safetensors")
    if trust is not None:
        trust_file.add(weights, trust, weights)
    files = folder / "files"
    files.mkdir()

    def load(name):
        model = restorer.load(name)
        return Gated(model, gate) if gate else model

    working = worker.Worker([str(weights)], load, MAX_MEGAPIXELS * 1_000_000, max_waiting)
    kept = results.Results(files)
    return app.make_app(working, kept, app.Limits(max_bytes, seconds)), working, weights


@contextlib.contextmanager
def listening(application):
    """Serves an application in a thread; yields its address."""
    config = uvicorn.Config(application, port=0, log_level="warning", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
