"""The page's server. It answers nobody but the page: a secret in the address, and checks of who asks.

Starlette and uvicorn: small, typed, long kept, no more than three small packages of pure Python below them.
"""

import hmac
import ipaddress
import json
import logging
import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fewshot.labelling.board import Board
from fewshot.labelling.export import EXPORTS, table
from fewshot.labelling.labels import StaleError
from fewshot.labelling.pictures import LARGE, GoneError, content, jpeg, thumbnail
from pretrain.fingerprint import shown
from runner.errors import InputError, users_message

log = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAX_BODY = 8 << 20  # bytes of a request: the labels of 50,000 images are 1 MiB
MAX_ITEMS = 500  # of a list in one answer
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address holds the secret
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
NO_SECRET = "Open the address that the terminal shows, with all that follows the port."


class Guard:
    """Passes on only what the page itself asks: the secret first in the path, a known host, no other site's page.

    The secret is part of every address below which the page and all it loads are, and no cookie is set, so a browser
    sends nothing of itself that another site could use.
    """

    def __init__(self, app: ASGIApp, secret: str, hosts: Iterable[str]) -> None:
        self.app, self.secret, self.hosts = app, secret.encode(), set(hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403 to everything else."""
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given, _, rest = scope["path"].removeprefix("/").partition("/")
        refusal = self._refusal(scope["method"], headers)
        if refusal is None and not hmac.compare_digest(given.encode("utf-8", "surrogatepass"), self.secret):
            refusal = NO_SECRET
        if refusal is not None:
            await PlainTextResponse(refusal, 403, HEADERS)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                set_already = {name.lower() for name, _ in message["headers"]}
                more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(one for one in more if one[0] not in set_already)]
            await send(message)

        await self.app(dict(scope) | {"path": f"/{rest}", "raw_path": None}, receive, send_with_headers)

    def _refusal(self, method: str, headers: dict[str, str]) -> str | None:
        host = headers.get("host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if name not in self.hosts and not is_address(name, self.hosts):
            return f"The server does not go by the name {name!r}."
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return "Another site may not ask this server."
        if headers.get("origin", f"http://{host}").lower() != f"http://{host}":
            return "Another site may not ask this server."
        if method == "POST" and headers.get("content-type") != "application/json":
            return "Only the page may ask this server."
        return None


def is_address(name: str, hosts: set[str]) -> bool:
    """Whether a server that is open to other machines (``*`` in ``hosts``) is called by an address, not by a name.

    Another site can make its name lead here, but not an address.
    """
    if "*" not in hosts:
        return False
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def application(board: Board, output: Path) -> Starlette:
    """The page's addresses, without their guard. ``output`` is the folder for thumbnails and exports."""

    def picture(request: Request) -> int:
        index = int(request.path_params["index"])
        if request.path_params["catalogue"] != board.catalogue or index >= len(board.pictures):
            raise HTTPException(404, "there is no such image")
        return index

    def gone(index: int, error: Exception) -> Response:
        board.hide(index)
        return PlainTextResponse(str(error), 410)

    def small(request: Request) -> Response:
        index = picture(request)
        try:
            encoded = thumbnail(board.folder, board.pictures[index], output / "thumbnails")
        except (GoneError, OSError) as error:
            return gone(index, error)
        return Response(encoded, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    def large(request: Request) -> Response:
        index = picture(request)
        try:
            return Response(jpeg(content(board.folder, board.pictures[index]), LARGE), media_type="image/jpeg")
        except (GoneError, OSError) as error:
            return gone(index, error)

    def names(request: Request) -> Response:
        return JSONResponse([shown(name) for name in board.pictures[picture(request)].names])

    def state(request: Request) -> Response:
        if request.query_params.get("order") == f"{board.catalogue}-{board.num_orders}":
            return Response(status_code=204)
        return JSONResponse(board.view(number(request, "items", 40)))

    def window(request: Request) -> Response:
        key = request.query_params.get("list", "")
        return JSONResponse(board.window(key, number(request, "start", 0), number(request, "count", MAX_ITEMS)))

    async def asked(request: Request) -> dict[str, Any]:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise HTTPException(413, "this is too much at once")
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise InputError("this cannot be understood; reload the page")
        if found.get("catalogue") != board.catalogue:
            raise StaleError("the server was started again and found other images; reload the page")
        return found

    async def act(request: Request) -> Response:
        found = await asked(request)
        event, base = found.get("event"), found.get("base")
        if not isinstance(event, dict) or not isinstance(base, int):
            raise InputError("this cannot be understood; reload the page")
        await run_in_threadpool(board.act, event, base)
        return JSONResponse(await run_in_threadpool(board.view, int(found.get("items", 40))))

    async def method(request: Request) -> Response:
        await run_in_threadpool(board.choose, str((await asked(request)).get("method")))
        return JSONResponse(await run_in_threadpool(board.view, 40))

    async def export(request: Request) -> Response:
        kind = (await asked(request)).get("kind")
        if kind not in EXPORTS:
            raise InputError(f"there is no export {kind!r}")
        path = await run_in_threadpool(EXPORTS[kind], board, output)
        return JSONResponse({"path": shown(path.absolute())})

    def labels(request: Request) -> Response:
        disposition = {"Content-Disposition": 'attachment; filename="labels.csv"'}
        return PlainTextResponse(table(board), media_type="text/csv", headers=disposition)

    def static(request: Request) -> Response:
        return FileResponse(STATIC / {"/": "index.html"}.get(request.url.path, request.url.path[1:]))

    image = "{catalogue:str}/{index:int}"
    return Starlette(
        routes=[
            *(Route(path, static) for path in ("/", "/page.js", "/page.css", "/icon.svg")),
            Route(f"/small/{image}", small),
            Route(f"/large/{image}", large),
            Route(f"/names/{image}", names),
            Route("/state", state),
            Route("/list", window),
            Route("/labels.csv", labels),
            *(Route(f"/{call.__name__}", call, methods=["POST"]) for call in (act, method, export)),
        ],
        exception_handlers={InputError: refused, OSError: refused},
    )


def number(request: Request, key: str, default: int) -> int:
    """A whole number of the address, 0 to MAX_ITEMS where it counts items."""
    text = request.query_params.get(key, "")
    value = int(text) if text.isdecimal() and len(text) < 10 else default
    return value if key == "start" else min(value, MAX_ITEMS)


def refused(request: Request, error: Exception) -> Response:
    """What the page says where something cannot be done."""
    said = users_message(error)
    if said is None:
        raise error
    return JSONResponse({"error": said}, 409 if isinstance(error, StaleError) else 400)


def listening(host: str, port: int) -> socket.socket:
    """A socket at ``port`` of ``host``; raises InputError where that cannot be had. Port 0 is any free one."""
    if port > 65535:  # which systems take as another one
        raise InputError(
            f"stage.port={port} is no port; the limit is 65535: give another one, or 0 for any that is free"
        )
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, kind, protocol)
        if os.name == "posix":  # elsewhere it would let two servers have one port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind(place)
            opened.listen(128)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        raise InputError(
            f"stage.host={host} stage.port={port} cannot be listened at ({error.strerror}); where another program has "
            f"the port, give another one, or stage.port=0 for any that is free"
        ) from error
    return opened


def hosts_of(host: str) -> set[str]:
    """The names that a server at ``host`` goes by; ``*`` stands for every address."""
    if host in ("0.0.0.0", "::", ""):
        return {"*", "localhost", socket.gethostname().lower()}
    return {host.lower(), f"[{host.lower()}]", *(("localhost",) if host in ("127.0.0.1", "::1", "localhost") else ())}


def secret_at(path: Path) -> str:
    """The secret in the file ``path``, which its owner alone may read; made where there is none.

    It stays the same, so that an open page goes on after the server was started again.
    """
    try:
        found = path.read_text(encoding="ascii")
        if len(found) == 43:
            return found
        path.unlink()
    except (FileNotFoundError, UnicodeDecodeError):
        path.unlink(missing_ok=True)
    secret = secrets.token_urlsafe(32)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(secret, encoding="ascii")
    return secret


def serve(board: Board, output: Path, opened: socket.socket, host: str, secret: str) -> None:
    """Answer at the socket ``opened`` until the process is interrupted."""
    app = Guard(application(board, output), secret, hosts_of(host))
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
    )
    uvicorn.Server(config).run(sockets=[opened])
