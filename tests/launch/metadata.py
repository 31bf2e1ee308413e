"""A stand-in for the metadata server of Google's hosts, as libtpu and jax ask it."""

import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH = "/computeMetadata/v1/instance/attributes/"


@contextlib.contextmanager
def served(hosts, address="127.0.0.1"):
    """Yields a port for each host of a slice, that answers for that host."""
    servers = []
    for index in range(hosts):
        told = {
            "agent-worker-number": str(index),
            "worker-network-endpoints": ",".join([address] * hosts),
            "tpu-env": "ACCELERATOR_TYPE: 'v4-16'\nZONE: 'us-central2-b'\n",
        }
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(told))
        serve = server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()
        servers.append(server)
    try:
        yield [server.server_port for server in servers]
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def handler(told):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            flavor = self.headers.get("Metadata-Flavor") == "Google"
            text = told.get(self.path.removeprefix(PATH)) if flavor else None
            self.send_response(200 if text is not None else 404)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def log_message(self, *arguments):
            pass

    return Handler
