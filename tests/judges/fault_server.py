"""A chat-completions server on loopback that fails on demand."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server does with one request: status, headers and body, after ``hold`` is set (if it is given).

    ``content`` stands in the message in place of ``text`` where it is given; ``message`` in place of the whole message.
    """

    text: str = "A"
    content: Any = None
    message: Any = ...
    finish: str = "stop"
    served: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    hold: threading.Event | None = None
    drop: bool = False

    def payload(self, request: dict[str, Any]) -> bytes:
        """The body as sent."""
        if self.body is not None:
            return self.body
        if self.status != 200:
            return json.dumps({"error": {"message": self.text, "code": self.headers.get("x-code")}}).encode()

        message = {"role": "assistant", "content": self.text if self.content is None else self.content}
        message = message if self.message is ... else self.message
        prompt_tokens = len(request["messages"][0]["content"]) // 4
        return json.dumps(
            {
                "id": "reply",
                "object": "chat.completion",
                "created": 1,
                "model": self.served or request["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": self.finish}],
                "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 2, "total_tokens": prompt_tokens + 2},
            }
        ).encode()


Behaviour = Callable[[int, dict[str, Any]], Answer]


class FaultServer(ThreadingHTTPServer):
    """Asks ``behaviour(number of this request, request)`` what to do; keeps every request."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, behaviour: Behaviour, port: int = 0) -> None:
        """Listen on loopback, on a free port unless one is given."""
        super().__init__(("127.0.0.1", port), _Handler)
        self.behaviour = behaviour
        self.requests: list[dict[str, Any]] = []
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        """Base URL for the client."""
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        """The prompt of every request so far."""
        return [request["messages"][0]["content"] for request in self.requests]

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent about clients that hang up: the tests make them."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultServer

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(request)
            self.server.under_way += 1
            self.server.most_under_way = max(self.server.most_under_way, self.server.under_way)
        try:
            self._answer(self.server.behaviour(number, request), request)
        finally:
            with self.server.lock:
                self.server.under_way -= 1

    def _answer(self, answer: Answer, request: dict[str, Any]) -> None:
        if answer.hold:
            answer.hold.wait(30)
        if answer.drop:
            self.close_connection = True
            return

        body = answer.payload(request)
        self.send_response(answer.status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | answer.headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test output clean."""


@contextmanager
def serving(behaviour: Behaviour, port: int = 0) -> Iterator[FaultServer]:
    """A running server, stopped at the end."""
    server = FaultServer(behaviour, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
