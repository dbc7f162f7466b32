"""Refuses requests of other sites, and limits what a page may load and a client may send."""

import ipaddress
import json
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


def refusal(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    """Returns an error as one line of JSON."""
    return Response(
        json.dumps({"error": " ".join(reason.split())}, ensure_ascii=False) + "\n",
        status,
        headers,
        "application/json",
    )


class Guard:
    """ASGI middleware.

    A site that the user visits may point its own name at this machine (DNS rebinding): the
    `Host` header must therefore be an address, `localhost`, or a name of this machine. It may
    also post to it: the `Origin` header, which browsers send along, must then be this server.

    Args:
        app: the application.
        names: further names of this machine.
        max_bytes: largest body of a request.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes
        self._names = {"localhost", socket.gethostname().lower(), *map(str.lower, names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        found = self._problem(scope)
        app = self._app if found is None else refusal(*found)
        await app(scope, self._limited(receive), send_with_headers)

    def _problem(self, scope: Scope) -> tuple[int, str] | None:
        """Returns the status and reason for which a request is refused."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_own(host):
            return 403, f"host {host!r}: not a name of this server; use its address"
        if scope["method"] not in ("GET", "HEAD"):
            own = f"{scope['scheme']}://{host}"
            origin = headers.get("origin", own)
            foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
            if origin.lower() != own.lower() or foreign:
                return 403, "requests of other sites are refused"
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            return 413, self._too_many
        return None

    @property
    def _too_many(self) -> str:
        megabytes = self._max_bytes // 1_000_000
        return f"the file has more than {megabytes} MB; serve --max_megabytes allows more"

    def _is_own(self, host: str) -> bool:
        name = host.rpartition(":")[0] if host[-1:] != "]" and ":" in host else host
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.lower() in self._names
        return True

    def _limited(self, receive: Receive) -> Receive:
        """Limits a body whose length was not stated."""
        total = 0

        async def receive_some() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > self._max_bytes:
                raise HTTPException(413, self._too_many)
            return message

        return receive_some
