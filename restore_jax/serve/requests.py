"""What a request may ask for, how its photograph is received, and its refusals."""

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

_MAX_TILE = 4096  # its memory is bounded; a command on one's own machine may use more
_MAX_NAME = 240


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a photograph is restored: the flags of `--mode=restore` of the same names.

    Attributes:
        model: one of the served models; None for the first.
        strength, self_ensemble, tile, white, pages: as for the command.
        trust: whether there is a trust map, too, if the model has one; for the page alone.
    """

    model: str | None = None
    strength: float | None = None
    self_ensemble: str | None = None
    tile: int | None = None
    white: int | None = None
    pages: str = "all"
    trust: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """Returns those that are options of `Restorer`."""
        return {
            "strength": self.strength,
            "self_ensemble": self.self_ensemble,
            "tile": self.tile,
        }


_TYPES: dict[str, Callable[[str], Any]] = {
    "model": str, "strength": float, "self_ensemble": str, "tile": int, "white": int,
    "pages": str,
}  # fmt: skip
_SWITCHES = {"true": True, "false": False}


def parse_settings(
    query: Mapping[str, str], others: tuple[str, ...] = (), of_page: bool = False
) -> Settings:
    """Parses the query parameters of a request.

    Args:
        query: the parameters; an empty one counts as not given.
        others: further parameters that may be there, which are ignored.
        of_page: whether there may be those that only the page has a use for.

    Raises:
        HTTPException: 400, for an unknown parameter or an invalid value.
    """
    types = _TYPES | ({"trust": _SWITCHES.__getitem__} if of_page else {})
    found = {}
    for name, text in query.items():
        if name in others or (name in types and not text):
            continue
        if name not in types:
            raise HTTPException(400, f"{name}: no such parameter; there are {', '.join(types)}")
        try:
            found[name] = types[name](text)
        except KeyError as error:
            raise HTTPException(400, f"{name}={text}: not true or false") from error
        except ValueError as error:
            raise HTTPException(400, f"{name}={text}: not a number") from error
    settings = Settings(**found)
    if settings.tile is not None and settings.tile > _MAX_TILE:
        raise HTTPException(400, f"tile={settings.tile}: must be at most {_MAX_TILE}")
    if settings.white is not None and not 1 <= settings.white <= 65535:
        raise HTTPException(400, f"white={settings.white}: must lie between 1 and 65535")
    if settings.pages not in ("all", "first"):
        raise HTTPException(400, f"pages={settings.pages}: not one of all, first")
    return settings


async def receive_file(request: Request, path: Path) -> str:
    """Writes the photograph of a request to a file: its body, or the first file of a form.

    Returns:
        The photograph's name as the sender gave it, made safe, see `safe_name`; by default
        "photograph".

    Raises:
        HTTPException: 400, for a form without a file.
    """
    name = request.query_params.get("name", "")
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        async with await anyio.open_file(path, "wb") as file:
            async for chunk in request.stream():
                await file.write(chunk)
        return safe_name(name)
    async with request.form(max_files=1, max_fields=8) as form:
        upload = next((one for one in form.values() if isinstance(one, UploadFile)), None)
        if upload is None:
            raise HTTPException(400, "the form has no file")
        await anyio.to_thread.run_sync(_copy, upload, path)
        return safe_name(name or upload.filename or "")


def _copy(upload: UploadFile, path: Path) -> None:
    with path.open("wb") as file:
        shutil.copyfileobj(upload.file, file)


def safe_name(name: str) -> str:
    r"""Returns a relative path with "/" that stays below its folder, for an archive or header.

    Examples:
        >>> safe_name("C:\\scans\\..\\a 1.png"), safe_name("/b;.tif"), safe_name("..")
        ('C_/scans/a 1.png', 'b_.tif', 'photograph')
    """
    parts = (part.strip() for part in re.split(r"[/\\]", name))
    kept = [re.sub(r"[^\w .,()@#+=~!&\[\]-]", "_", part) for part in parts]
    return "/".join(part for part in kept if part.strip("."))[-_MAX_NAME:] or "photograph"
