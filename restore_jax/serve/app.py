"""The HTTP application: the endpoint for programs, the page and what the page asks for."""

import asyncio
import contextlib
import dataclasses
import html
import json
import secrets
import shutil
import string
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from restore_jax import report, shipped, version
from restore_jax.errors import RunError, UsageError
from restore_jax.image_io import image_files, image_paths
from restore_jax.serve import requests
from restore_jax.serve.guard import Guard, refusal
from restore_jax.serve.results import Result, Results
from restore_jax.serve.worker import AbandonedError, BusyError, Job, Restored, Worker

_ASSETS = Path(__file__).parent / "assets"
_REPORT = Path(report.__file__).parent / "templates"
_FILES = {
    "report.css": (_REPORT / "report.css", "text/css"),
    "serve.css": (_ASSETS / "serve.css", "text/css"),
    "serve.js": (_ASSETS / "serve.js", "text/javascript"),
}
_MEDIA_TYPES = {
    "PNG": "image/png", "JPEG": "image/jpeg", "TIFF": "image/tiff", "BMP": "image/bmp",
    "WEBP": "image/webp", "GIF": "image/gif", "PNM": "image/x-portable-anymap",
    "JP2": "image/jp2", "AVIF": "image/avif",
}  # fmt: skip
_RETRY_SECONDS = 2
_POLL_SECONDS = 0.5  # how soon it is noticed that a client has gone


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may cost.

    Attributes:
        max_bytes: largest body.
        seconds: longest time from a request to its answer.
    """

    max_bytes: int
    seconds: float


def make_app(
    worker: Worker, results: Results, limits: Limits, names: Iterable[str] = ()
) -> ASGIApp:
    """Creates the application.

    Args:
        worker: restores the photographs; it is closed with the application.
        results: keeps what the page shows.
        limits: what one request may cost.
        names: further names of this machine, see `Guard`.
    """
    service = _Service(worker, results, limits)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await anyio.to_thread.run_sync(worker.close)

    application = Starlette(
        routes=[
            Route("/", service.page),
            Route("/assets/{name}", service.asset),
            Route("/health", service.health),
            Route("/progress/{token}", service.progress),
            Route("/restore", service.restore, methods=["POST"]),
            Route("/photographs", service.add, methods=["POST"]),
            Route("/photographs/{identity}", service.drop, methods=["DELETE"]),
            Route("/photographs/{identity}/file", service.file),
            Route("/photographs/{identity}/{picture}.png", service.picture),
            Route("/zip", service.archive, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=lifespan,
    )
    return Guard(application, names, limits.max_bytes)


def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(error.status_code, error.detail, dict(error.headers or {}))


def _fail(_: Request, error: Exception) -> Response:
    return refusal(500, f"an error of the server: {type(error).__name__}")


class _Service:
    """The handlers of requests."""

    def __init__(self, worker: Worker, results: Results, limits: Limits) -> None:
        self._worker, self._results, self._limits = worker, results, limits
        # One number each, which the worker sets: by the tokens of the requests under way.
        self._shares: dict[str, list[float]] = {}

    async def page(self, _: Request) -> Response:
        """Shows the page."""
        template = string.Template((_ASSETS / "page.html").read_text(encoding="utf-8"))
        suffixes = [one for known in image_paths.SUFFIXES.values() for one in known]
        return HTMLResponse(
            template.substitute(
                models="\n".join(map(_option, self._worker.names)),
                max_bytes=self._limits.max_bytes,
                max_megabytes=self._limits.max_bytes // 1_000_000,
                max_megapixels=f"{self._worker.max_pixels / 1e6:g}",
                formats=", ".join(image_paths.SUFFIXES),
                suffixes=" ".join(suffixes),
                accept=",".join(suffixes),
            )
        )

    async def asset(self, request: Request) -> Response:
        """Returns a stylesheet or the script of the page."""
        if (found := _FILES.get(request.path_params["name"])) is None:
            raise HTTPException(404)
        return FileResponse(found[0], media_type=found[1])

    async def health(self, _: Request) -> Response:
        """Tells whether photographs are accepted, and how many wait."""
        worker = self._worker
        found = {
            "ok": not worker.stopped,
            "version": version.installed(),
            "model": worker.names[0],
            "models": worker.names,
            "queue": worker.waiting,
            "max_queue": worker.max_waiting,
            "max_megapixels": worker.max_pixels / 1e6,
            "max_megabytes": self._limits.max_bytes / 1e6,
        }
        return JSONResponse(found, 200 if found["ok"] else 503)

    async def progress(self, request: Request) -> Response:
        """Tells how much of a request's picture is restored."""
        if (share := self._shares.get(request.path_params["token"])) is None:
            raise HTTPException(404)
        return JSONResponse({"share": round(share[0], 3)})

    async def restore(self, request: Request) -> Response:
        """Restores a photograph and returns the file that the command would write."""
        name, _, restored = await self._restored(request, of_page=False)
        return FileResponse(
            restored.target,
            media_type=_MEDIA_TYPES[restored.format],
            # JSON without other than ASCII characters, as headers have to be.
            headers={"restore-notes": json.dumps(restored.notes)},
            filename=name.rpartition("/")[2],
            background=BackgroundTask(_remove, restored.target.parent),
        )

    async def add(self, request: Request) -> Response:
        """Restores a photograph and keeps the result for the page."""
        name, settings, restored = await self._restored(request, of_page=True)
        result = Result(name, restored, settings.white)
        address = f"/photographs/{self._results.keep(result)}"
        extras = [{"title": title, "picture": quote(title)} for title in restored.extras]
        return JSONResponse(
            {"address": address, "name": name, "notes": restored.notes, "extras": extras}
        )

    async def drop(self, request: Request) -> Response:
        """Removes a result that the page no longer shows."""
        self._results.drop(request.path_params["identity"])
        return Response(status_code=204)

    async def file(self, request: Request) -> Response:
        """Returns a restored file to be saved."""
        result = self._result(request)
        return FileResponse(
            result.restored.target,
            media_type=_MEDIA_TYPES[result.restored.format],
            filename=result.name.rpartition("/")[2],
        )

    async def picture(self, request: Request) -> Response:
        """Returns a picture of a result to be shown: before, after, or one of its extras."""
        result, name = self._result(request), request.path_params["picture"]
        if name in result.restored.extras:
            path = result.restored.extras[name]
        elif name in ("before", "after"):
            path = await self._made([result], result.preview, name)
        else:
            raise HTTPException(404)
        return FileResponse(path, media_type="image/png")

    async def archive(self, request: Request) -> Response:
        """Returns several restored files as a zip archive."""
        async with request.form(max_files=0, max_fields=1, max_part_size=1 << 20) as form:
            addresses = str(form.get("addresses", "")).split()
        found = [self._results.get(one.rpartition("/")[2]) for one in addresses]
        results = [one for one in found if one is not None]
        if not results or len(results) < len(found):
            raise _gone()
        path = await self._made(results, self._results.write_zip, results)
        return FileResponse(
            path,
            media_type="application/zip",
            filename="restored.zip",
            background=BackgroundTask(path.unlink),
        )

    def _result(self, request: Request) -> Result:
        result = self._results.get(request.path_params["identity"])
        if result is None or not result.folder.exists():
            raise _gone()
        return result

    async def _made(
        self, results: Sequence[Result], make: Callable[..., Path], *args: Any
    ) -> Path:
        """Makes a file from those of results, which newer ones may replace meanwhile."""
        try:
            return await anyio.to_thread.run_sync(make, *args)
        except (OSError, image_files.ImageFileError) as error:
            if all(result.folder.exists() for result in results):
                raise
            raise _gone() from error

    async def _restored(
        self, request: Request, of_page: bool
    ) -> tuple[str, requests.Settings, Restored]:
        """Receives a photograph and restores it, in a folder of its own.

        Returns:
            Its name, how it was restored, and the files, which the caller removes.

        Raises:
            HTTPException: for whatever goes wrong.
        """
        query = request.query_params
        settings = requests.parse_settings(query, ("name", "progress"), of_page)
        token = query.get("progress") or secrets.token_urlsafe(16)
        if token in self._shares:
            raise HTTPException(400, "progress: another request has this token")
        folder = self._results.new_folder()
        share = self._shares[token] = [0.0]
        try:
            return await self._restored_in(folder, request, settings, share)
        except BaseException:
            _remove(folder)
            raise
        finally:
            del self._shares[token]

    async def _restored_in(
        self, folder: Path, request: Request, settings: requests.Settings, share: list[float]
    ) -> tuple[str, requests.Settings, Restored]:
        source, target = folder / "photograph", folder / "restored"
        try:
            with self._worker.place():
                async with asyncio.timeout(self._limits.seconds):
                    name = await requests.receive_file(request, source)
                    done = await self._wait(request, source, target, settings, share)
                    return name, settings, done
        except BusyError as error:
            raise HTTPException(
                503,
                f"{self._worker.max_waiting} photographs wait already; try again",
                {"Retry-After": str(_RETRY_SECONDS)},
            ) from error
        except TimeoutError as error:
            seconds = self._limits.seconds
            raise HTTPException(504, f"not done within {seconds:g} s") from error
        except AbandonedError as error:
            raise HTTPException(503, "the server is stopping") from error
        except UsageError as error:
            raise HTTPException(400, str(error)) from error
        except (image_files.ImageFileError, ValueError) as error:
            too_large = isinstance(error, image_files.ImageTooLargeError)
            reason = str(error).removeprefix(f"{source}: ")
            raise HTTPException(413 if too_large else 422, reason) from error
        except RunError as error:
            raise HTTPException(500, str(error)) from error

    async def _wait(
        self,
        request: Request,
        source: Path,
        target: Path,
        settings: requests.Settings,
        share: list[float],
    ) -> Restored:
        """Waits for a restoration; abandons it if the client goes or time is over."""

        def tell(now: float) -> None:
            share[0] = now

        job = Job(source, target, settings, tell)
        future = self._worker.submit(job)
        waiting = asyncio.wrap_future(future)
        try:
            while not (await asyncio.wait({waiting}, timeout=_POLL_SECONDS))[0]:
                if await request.is_disconnected():
                    raise AbandonedError
            return waiting.result()
        except BaseException:
            job.abandoned.set()
            future.cancel()
            # It may still be restored, and write, until the next batch of tiles.
            future.add_done_callback(lambda _: _remove(source.parent))
            raise


def _gone() -> HTTPException:
    return HTTPException(404, "some of these are no longer kept; restore them again")


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _option(name: str) -> str:
    model = next((one for one in shipped.MODELS if one.name == name), None)
    about = f"{model.purpose}; licence: {model.licence}" if model else ""
    shown = html.escape(name)
    return f'<option value="{shown}" data-about="{html.escape(about)}">{shown}</option>'
