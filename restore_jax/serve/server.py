"""Runs the page and the endpoint until Ctrl-C or SIGTERM."""

import contextlib
import dataclasses
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from restore_jax.errors import UsageError
from restore_jax.inference.restorer import Restorer
from restore_jax.serve.app import Limits, make_app
from restore_jax.serve.results import Results
from restore_jax.serve.worker import Worker

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
# How long an answer that is being sent may take when the server stops.
_GRACE_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Address:
    """Where the server listens.

    Attributes:
        host: an address or a name of this machine.
        port: the port; 0 for any that is free.
    """

    host: str
    port: int


class _Server(uvicorn.Server):
    """A server that abandons its photographs as soon as it is asked to stop."""

    def __init__(self, config: uvicorn.Config, worker: Worker) -> None:
        super().__init__(config)
        self._worker = worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._worker.stop()
        super().handle_exit(sig, frame)


def run(
    address: Address,
    models: Sequence[str],
    load: Callable[[str], Restorer],
    max_pixels: int,
    max_waiting: int,
    limits: Limits,
) -> None:
    """Serves until Ctrl-C or SIGTERM, then removes all files it has written.

    Args:
        address: where to listen.
        models: names of the models, the default first.
        load: loads a model by its name.
        max_pixels: largest number of pixels of a photograph.
        max_waiting: largest number of photographs that wait.
        limits: what one request may cost.

    Raises:
        UsageError: if the default model cannot be loaded or the address cannot be used.
    """
    with (
        _listening(address) as listening,
        tempfile.TemporaryDirectory(prefix="restore_jax-serve-") as folder,
    ):
        worker = Worker(models, load, max_pixels, max_waiting)
        app = make_app(worker, Results(Path(folder)), limits, (address.host,))
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        port = listening.getsockname()[1]
        shown = f"[{address.host}]" if ":" in address.host else address.host
        print(f"http://{shown}:{port}  restores with {models[0]}; Ctrl-C stops it", flush=True)
        if address.host not in _LOOPBACK:
            print("everyone who reaches this address can use it", flush=True)
        with _signals_end_quietly():
            _Server(config, worker).run(sockets=[listening])
    print("stopped")


def _listening(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    if not 0 <= address.port <= 65535:
        raise UsageError(f"--port={address.port}: must lie between 0 and 65535")
    try:
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise UsageError(
            f"--host={address.host} --port={address.port}: cannot be listened at: "
            f"{error.strerror}; --port=0 takes any free port"
        ) from error


@contextlib.contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Ignores the signals that end the server: uvicorn raises them again when it has ended."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
