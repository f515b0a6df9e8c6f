"""A real HTTP server for the tests of the judge: each connection is answered by the next act of a script.

An act is a function (socket, request) that writes whatever it likes, HTTP or not, and returns; then the connection is
closed. The last act of a script answers every later request too."""

from __future__ import annotations

import json
import math
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any
from unittest import mock


@dataclass(frozen=True)
class Request:
    """What a client sent."""

    path: str
    headers: dict[str, str]
    body: Any
    at_seconds: float


Act = Callable[[socket.socket, Request], None]


@dataclass
class JudgeServer:
    """Its address, and every request that it has read whole, in order."""

    port: int
    script: list[Act]
    requests: list[Request] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def next_act(self, request: Request) -> Act:
        with self.lock:
            self.requests.append(request)
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]


@contextmanager
def serving(*script: Act, certificate: Path | None = None) -> Iterator[JudgeServer]:
    """A server with that script, on a port of its own, gone at the end; with a certificate it speaks TLS.

    Meanwhile no proxy of this machine is between it and its clients."""
    with (
        mock.patch.dict(os.environ, {"NO_PROXY": "*", "no_proxy": "*"}),
        socket.create_server(("127.0.0.1", 0), backlog=64) as listener,
    ):
        server = JudgeServer(port=listener.getsockname()[1], script=list(script))
        if certificate is not None:
            server.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            server.tls.load_cert_chain(certificate)
        thread = threading.Thread(target=_accept, args=(listener, server), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _accept(listener: socket.socket, server: JudgeServer) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, server), daemon=True).start()


def _answer(connection: socket.socket, server: JudgeServer) -> None:
    # A client that has given up is part of the game.
    with connection, suppress(OSError):
        connection.settimeout(20)
        if server.tls is None:
            _play(connection, server)
        else:
            with server.tls.wrap_socket(connection, server_side=True) as tunnel:
                _play(tunnel, server)


def _play(connection: socket.socket, server: JudgeServer) -> None:
    request = _read_request(connection)
    if request is not None:
        act = server.next_act(request)
        act(connection, request)


def _read_request(connection: socket.socket) -> Request | None:
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers.get("content-length", "0")):
        chunk = connection.recv(65536)
        if not chunk:
            return None
        body += chunk
    return Request(path=first.split()[1], headers=headers, body=json.loads(body), at_seconds=monotonic())


def quick_options(server: JudgeServer, **options: Any) -> dict[str, Any]:
    """Options of a judge that asks this server and loses its patience soon."""
    quick = {"timeout_seconds": 5.0, "request_timeout_seconds": 2.0, "retry_wait_seconds": 0.01, "max_retries": 2}
    return {"base_url": server.base_url, "model": "judge-1", **quick, **options}


def http(status: int, body: bytes, *, content_type: str = "application/json", **headers: str) -> bytes:
    """The bytes of an HTTP answer; an underscore in a header's name stands for a hyphen."""
    named = {"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    return (
        f"HTTP/1.1 {status} Word\r\n".encode()
        + b"".join(f"{n}: {v}\r\n".encode() for n, v in named.items())
        + (b"\r\n" + body)
    )


def completion(tokens: dict[str, float], *, second: str = "", total_tokens: int | None = 10, **fields: Any) -> bytes:
    """The JSON of a chat completion whose first token has these probabilities; `second` is the token after it."""
    top = [{"token": token, "logprob": math.log(p) if p else -9999.0, "bytes": []} for token, p in tokens.items()]
    chosen = max(tokens, key=lambda token: tokens[token])
    content = [{"token": chosen, "logprob": 0.0, "top_logprobs": top}]
    if second:
        content.append({"token": second, "logprob": 0.0, "top_logprobs": []})
    return json.dumps(
        {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": chosen + second},
                    "logprobs": {"content": content},
                    "finish_reason": "length",
                }
            ],
            **({"usage": {"total_tokens": total_tokens}} if total_tokens is not None else {}),
            **fields,
        }
    ).encode()


def text_completion(text: str | None, *, finish_reason: str = "stop") -> bytes:
    """The JSON of a chat completion without log-probs."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return json.dumps({"choices": [choice], "usage": {"total_tokens": 10}}).encode()


def says(tokens: dict[str, float], **fields: Any) -> Act:
    """A good answer."""
    return raw(http(200, completion(tokens, **fields)))


def writes(text: str | None, **fields: Any) -> Act:
    """A good answer without log-probs."""
    return raw(http(200, text_completion(text, **fields)))


def raw(data: bytes) -> Act:
    """Those bytes, then the end of the connection."""

    def act(connection: socket.socket, request: Request) -> None:
        connection.sendall(data)

    return act


def fails(status: int, body: bytes = b'{"error": {"message": "no"}}', **headers: str) -> Act:
    """An error of the server."""
    return raw(http(status, body, **headers))


def drips(data: bytes, *, seconds_per_byte: float) -> Act:
    """Those bytes, one after another."""

    def act(connection: socket.socket, request: Request) -> None:
        pause = threading.Event()
        for byte in data:
            connection.sendall(bytes([byte]))
            pause.wait(seconds_per_byte)

    return act


def waits(seconds: float, then: bytes = b"") -> Act:
    """Nothing for a while, then those bytes. The client's leaving ends it early."""

    def act(connection: socket.socket, request: Request) -> None:
        connection.settimeout(seconds)
        try:
            connection.recv(1)  # nothing comes but the end
        except TimeoutError:
            connection.settimeout(5)
            connection.sendall(then)

    return act


def half_closes(data: bytes) -> Act:
    """Those bytes and the end of what it sends, while it goes on listening until the client leaves."""

    def act(connection: socket.socket, request: Request) -> None:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    return act


def resets(connection: socket.socket, request: Request) -> None:
    """A reset in place of an answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def echoes_key(status: int) -> Act:
    """An error that repeats the Authorization header, as some servers do."""

    def act(connection: socket.socket, request: Request) -> None:
        message = f"bad key {request.headers.get('authorization')}"
        connection.sendall(http(status, json.dumps({"error": {"message": message}}).encode()))

    return act
