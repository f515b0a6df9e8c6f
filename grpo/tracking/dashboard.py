"""`grpo dashboard`: the report's page, served while runs go on.

Owns the server and who may ask it: on the loopback address anyone who asks it by that name, elsewhere who has the
token. It answers GET alone, and only with what `runs_folder` gives."""

import importlib.util
import ipaddress
import json
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from grpo.errors import ConfigError
from grpo.tracking.report import page, policy
from grpo.tracking.rollout_index import Wanted
from grpo.tracking.runs_folder import RunsFolder, UnknownRunError

COOKIE = "grpo_dashboard"
LOOPBACK_NAMES = ("127.0.0.1", "localhost", "::1")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _Request(Protocol):
    """Of starlette's request what is read here."""

    query_params: Any
    cookies: dict[str, str]
    headers: Any
    url: Any


def serve(folder: Path, *, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve the runs in `folder` until Ctrl-C. Port 0 takes a free one; `say` is told the address to open.

    Raises ConfigError where the folder, the address or the port cannot be had, or the extra is not installed."""
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the dashboard needs {' and '.join(missing)}: pip install 'grpo-trainer[dashboard]'")
    import uvicorn

    token = None if is_loopback(host) else secrets.token_urlsafe(24)
    app = application(folder, token=token)
    with _listening(host, port) as listening:
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listening.getsockname()[1]}/"
        say(address if token is None else f"{address}?token={token}")
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
        with suppress(KeyboardInterrupt):  # how one ends it
            server.run(sockets=[listening])


def application(folder: Path, *, token: str | None) -> Any:
    """The dashboard as an ASGI application; `token` is asked for where it is given.

    Raises ConfigError where `folder` is none."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.responses import Response
    from starlette.routing import Route

    try:
        runs = RunsFolder(folder)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    text, content_policy = page(data=None), f"{policy(is_live=True)}; frame-ancestors 'none'"

    def show_page(request: _Request) -> Response:
        return Response(text, media_type="text/html", headers={"Content-Security-Policy": content_policy})

    def as_json(value: object, *, status: int = 200) -> Response:
        # In ASCII: names can hold half a surrogate pair, which UTF-8 has not.
        return Response(json.dumps(value, allow_nan=False), status_code=status, media_type="application/json")

    def answer(respond: Callable[[Any], object]) -> Callable[[_Request], Response]:
        def endpoint(request: _Request) -> Response:
            try:
                return as_json(respond(request.query_params))
            except (UnknownRunError, FileNotFoundError) as error:  # a run can be deleted while it is looked at
                return as_json({"error": str(error)}, status=404)
            except ValueError as error:
                return as_json({"error": str(error)}, status=400)

        return endpoint

    routes = {
        "/api/runs": lambda asked: {"runs": runs.runs()},
        "/api/run": lambda asked: runs.data(asked.get("id", "")),
        "/api/news": lambda asked: runs.news(asked.get("id", ""), cursor=asked.get("cursor", "")),
        "/api/rollout": lambda asked: runs.rollout(asked.get("id", ""), asked.get("key", "")),
        "/api/rollouts": lambda asked: runs.rollouts(
            asked.get("id", ""), _wanted(asked), order=asked.get("order", ""), page=_page(asked)
        ),
    }
    return Starlette(
        routes=[
            Route("/", show_page, methods=["GET"]),
            *(Route(path, answer(respond), methods=["GET"]) for path, respond in routes.items()),
        ],
        middleware=[Middleware(_Guard, token=token)],
    )


class _Guard:
    """In front of everything: refuses who may not ask, and adds the headers of every answer."""

    def __init__(self, app: Any, *, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse, RedirectResponse, Response

        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message["headers"], *(pair for pair in added if pair[0] not in names)]
            await send(message)

        request = Request(scope)
        refused: Response | None = None
        given = request.query_params.get("token", "")
        if self._token is None:
            # A page of somebody else's could have its own name lead to this address, and would read what is answered.
            if host_name(request.headers.get("host", "")) not in LOOPBACK_NAMES:
                refused = PlainTextResponse("ask for this by a loopback address", status_code=403)
        elif given and _same(given, self._token):
            # Out of the address, where it would stay in histories and logs.
            refused = RedirectResponse("/", status_code=303)
            refused.set_cookie(COOKIE, self._token, httponly=True, samesite="strict")
        elif not _same(request.cookies.get(COOKIE, ""), self._token):
            refused = PlainTextResponse("open the address with the token that grpo dashboard printed", status_code=401)
        await (refused or self._app)(scope, receive, with_headers)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def host_name(header: str) -> str:
    """The name in a Host header, without its port and brackets."""
    name = header.rpartition("]")[0].removeprefix("[") if header.startswith("[") else header.partition(":")[0]
    return name.lower()


def _listening(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--host {host} --port {port}: cannot be listened on ({error}); choose another") from error


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _wanted(asked: Any) -> Wanted:
    """Raises ValueError where a bound is no number."""

    def text(name: str) -> str:
        return str(asked.get(name, ""))

    def bound(name: str) -> float | None:
        return float(text(name)) if text(name) else None

    return Wanted(
        step=text("step"),
        tier=text("tier"),
        status=text("status"),
        stage=text("stage"),
        least=bound("least"),
        most=bound("most"),
        shortest=bound("shortest"),
        longest=bound("longest"),
        text=text("text"),
    )


def _page(asked: Any) -> int:
    """Raises ValueError where it is no number from 0."""
    page = asked.get("page", "0")
    if not page.isdecimal():
        raise ValueError("page: must be a whole number from 0")
    return int(page)
