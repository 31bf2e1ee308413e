"""An OpenAI-compatible server on loopback that says what a test tells it to."""

import contextlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHOWN = re.compile(r"Response A:\n(.*?)\n\nResponse B:\n(.*?)\n\nFirst compare", re.S)
AT_ONCE = {"retry-after-ms": "1"}  # the client waits as long as it is told to


def shown(text):
    """The two answers of a question, as they were shown."""
    return SHOWN.search(text).groups()


def said(letter):
    return f"Comparison: one of them is better.\nMore helpful: {letter}"


def first(text):
    del text
    return said("A")


def longer(text):
    a, b = shown(text)
    return said("A" if len(a) >= len(b) else "B")


class Stub:
    """Counts what it is asked, and says what `reply` makes of it.

    `reply` takes the text and gives a text, a tuple (text, finish reason), a status, or
    a number of seconds to sleep as a float.
    """

    def __init__(self, reply):
        self.reply, self.asked, self.headers, self.bodies = reply, [], [], []
        self.at_once, self.most, self.lock = 0, 0, threading.Lock()

    def answer(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        text = body["messages"][0]["content"]
        with self.lock:
            self.asked.append(text)
            self.headers.append({k.lower(): v for k, v in handler.headers.items()})
            self.bodies.append(body)
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        try:
            found = self.reply(text)
        finally:
            with self.lock:
                self.at_once -= 1
        if isinstance(found, float):
            time.sleep(found)
            found = said("A")
        if isinstance(found, int):
            return found, AT_ONCE, {"error": {"message": f"no: {self.headers[-1]}"}}
        content, reason = found if isinstance(found, tuple) else (found, "stop")
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        whole = {"id": "1", "object": "chat.completion", "created": 0}
        return 200, {}, {**whole, "model": "stub-0613", "choices": [choice]}


@contextlib.contextmanager
def serving(reply):
    """Yields (stub, base_url)."""
    stub = Stub(reply)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            status, headers, body = stub.answer(self)
            data = json.dumps(body).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub, f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
