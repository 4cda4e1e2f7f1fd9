"""A judge on this machine that gives a fixed reply."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any


class _Replies(BaseHTTPRequestHandler):
    """Replies as the server says, and stores each request."""

    server: Any

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.sent.append((self.path, self.headers["Authorization"], json.loads(body)))
        reply = self.server.reply.encode()
        self.send_response(self.server.status)
        for name, value in {"Content-Length": str(len(reply)), **self.server.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(OSError):  # the client may have gone
            for block in self.server.drip(reply):
                self.wfile.write(block)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Any]:
    """A server with `address`, and what it has been `sent`: path, key and body of each request.

    To be set: its `reply`, `status`, `headers`, and the blocks that it sends a reply in, `drip`.
    """
    server: Any = HTTPServer(("127.0.0.1", 0), _Replies)
    server.sent, server.reply, server.address = [], "", f"http://127.0.0.1:{server.server_port}/v1"
    server.status, server.headers, server.drip = 200, {}, lambda reply: [reply]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def said(text: str) -> str:
    """A chat completion."""
    return json.dumps({"choices": [{"message": {"content": text}}]})
