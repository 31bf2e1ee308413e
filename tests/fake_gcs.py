"""A store of gs:// in this process, over HTTP: preconditions, generations and faults.

Answers what this project, gcsfs and tensorstore ask of the JSON API. Every change takes
place under one lock, so that of all who create an object one wins; each is kept in
`changes` with its time. What it does not have: versions of one object, ACLs, and what
comes of many servers.
"""

import collections
import email
import json
import re
import threading
import time
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

OBJECTS = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)/o(?:/([^/]+))?")
UPLOAD = re.compile(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o")
COPY = re.compile(
    r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.+)"
)
MUTATIONS = ("POST", "PUT", "DELETE")


class Change(NamedTuple):
    at: float
    method: str
    name: str
    generation: int


class Fault:
    """What goes wrong with the next requests that fit.

    Args:
      method: of the requests.
      name: a pattern of object names.
      what: a status, which is answered instead; `lost`: the request is served, its
        answer never sent; `dropped`: it is neither served nor answered.
      times: how often; the requests before, `after`, are served well.
    """

    def __init__(self, method, name, what, times=1, after=0):
        self.method, self.name, self.what = method, re.compile(name), what
        self.times, self.after = times, after

    def meets(self, method, name):
        if method != self.method or not self.name.search(name) or not self.times:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


class FakeStore:
    """The objects of all buckets, and the server; `url` is its endpoint."""

    def __init__(self, *, strict=False):
        """Starts to serve.

        Args:
          strict: answer 429 to a change within a second of the last of an object.
        """
        self.objects = {}  # bucket/name -> (data, generation)
        self.changes, self.faults, self.sessions = [], [], {}
        self.asked = collections.Counter()  # (method, name)
        self.lock, self._next, self._strict = threading.Lock(), 1, strict
        self._last = {}
        store = self

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request, client_address):
                pass  # of clients that were killed, or left before the answer

        self.server = Server(("127.0.0.1", 0), type("H", (Handler,), {"store": store}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        serve = self.server.serve_forever
        threading.Thread(target=serve, args=(0.01,), daemon=True).start()  # to end soon

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def fault(self, *args, **kwargs):
        self.faults.append(Fault(*args, **kwargs))

    def data(self, url):
        """The bytes of an object; KeyError without one."""
        return self.objects[url.removeprefix("gs://")][0]

    def names(self, folder):
        """The names below a folder."""
        prefix = folder.removeprefix("gs://").rstrip("/") + "/"
        return sorted(
            k.removeprefix(prefix) for k in self.objects if k[: len(prefix)] == prefix
        )

    def change(self, method, name, query, data=None):
        """Changes an object, or refuses; returns (status, generation)."""
        with self.lock:
            now = time.monotonic()
            _, old = self.objects.get(name, (b"", 0))
            wanted = query.get("ifGenerationMatch")
            if wanted is not None and int(wanted) != old:
                return 412, 0
            if data is None and not old:
                return 404, 0
            if self._strict and now - self._last.get(name, -9) < 1:
                return 429, 0
            self._last[name] = now
            self._next += 1
            self.changes.append(Change(now, method, name, self._next))
            if data is None:
                del self.objects[name]
            else:
                self.objects[name] = data, self._next
            return 200, self._next

    def too_fast(self, seconds=1.0):
        """Lists (name, seconds between) of changes that came too soon."""
        last, fast = {}, []
        for change in self.changes:
            if change.at - last.get(change.name, -9e9) < seconds:
                fast.append((change.name, change.at - last[change.name]))
            last[change.name] = change.at
        return fast


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: FakeStore

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        self.serve("GET")

    def do_POST(self):
        self.serve("POST")

    def do_PUT(self):
        self.serve("PUT")

    def do_DELETE(self):
        self.serve("DELETE")

    def serve(self, method):
        self.lost = False
        whole = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(whole.query, keep_blank_values=True))
        body = self.body()
        path = re.sub("^/gcs(?=/)", "", whole.path)
        name = self.name_of(method, path, query, body)
        with self.store.lock:
            self.store.asked[method, name] += 1
            met = next((f for f in self.store.faults if f.meets(method, name)), None)
        if met and met.what == "dropped":
            return self.drop()
        if met and isinstance(met.what, int):
            return self.answer(met.what, {"error": {"code": met.what, "message": "x"}})
        self.lost = bool(met)
        self.route(method, path, name, query, body)

    def body(self):
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            whole = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def name_of(self, method, path, query, body):
        """BUCKET/NAME of what is asked for; '' of a bucket or a batch."""
        unquote = urllib.parse.unquote
        if "upload_id" in query:
            return self.store.sessions[query["upload_id"]][0]
        if found := UPLOAD.fullmatch(path):
            name = query.get("name") or json.loads(self.parts(body)[0])["name"]
            return f"{found[1]}/{name}"
        if found := COPY.fullmatch(path):
            return f"{found[3]}/{unquote(found[4])}"
        if found := OBJECTS.fullmatch(path):
            return f"{found[1]}/{unquote(found[2])}" if found[2] else f"{found[1]}/"
        return ""

    def route(self, method, path, name, query, body):
        if method in ("POST", "PUT") and (UPLOAD.fullmatch(path) or method == "PUT"):
            self.upload(name, query, body)
        elif found := COPY.fullmatch(path):
            self.copy(f"{found[1]}/{urllib.parse.unquote(found[2])}", name, query)
        elif path.startswith("/batch"):
            self.batch(body)
        elif method == "DELETE":
            status, _ = self.store.change("DELETE", name, query)
            self.answer(204 if status == 200 else status)
        elif re.fullmatch(r"/storage/v1/b/[^/]+", path):
            self.answer(200, {"kind": "storage#bucket", "name": path.split("/")[-1]})
        elif path.endswith("/storageLayout"):
            self.answer(200, {"hierarchicalNamespace": {"enabled": False}})
        elif name.endswith("/") and OBJECTS.fullmatch(path)[2] is None:
            self.list(name[:-1], query)
        else:
            self.get(name, path, query)

    def list(self, bucket, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        with self.store.lock:
            all_names = sorted(
                k.partition("/")[2]
                for k in self.store.objects
                if k.startswith(bucket + "/")
            )
            found = [n for n in all_names if n.startswith(prefix)]
        start, end = query.get("startOffset", ""), query.get("endOffset", "")
        found = [n for n in found if n >= start and (not end or n < end)]
        items, prefixes = [], []
        for n in found:
            head, cut, _ = (
                n[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            )
            if cut and prefix + head + cut not in prefixes:
                prefixes.append(prefix + head + cut)
            elif not cut:
                items.append(n)
        first = int(query.get("pageToken") or 0)
        most = int(query.get("maxResults") or 1000)
        page = {"kind": "storage#objects", "prefixes": prefixes if not first else []}
        with self.store.lock:
            page["items"] = [
                self.about(f"{bucket}/{n}")
                for n in items[first : first + most]
                if f"{bucket}/{n}" in self.store.objects
            ]
        if first + most < len(items):
            page["nextPageToken"] = str(first + most)
        self.answer(200, page)

    def about(self, name):
        data, generation = self.store.objects[name]
        bucket = name.partition("/")[0]
        key, size = name.partition("/")[2], str(len(data))
        when = "2026-01-01T00:00:00.000Z"
        return {
            "kind": "storage#object",
            "id": f"{name}/{generation}",
            "name": key,
            "bucket": bucket,
            "size": size,
            "generation": str(generation),
            "metageneration": "1",
            "etag": str(generation),
            "timeCreated": when,
            "updated": when,
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
        }

    def get(self, name, path, query):
        with self.store.lock:
            found = self.store.objects.get(name)
            about = self.about(name) if found else {}
        if found is None:
            return self.answer(404, {"error": {"code": 404, "message": "Not Found"}})
        data, generation = found
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self.answer(412)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self.answer(304)
        if query.get("alt") != "media":
            return self.answer(200, about)
        status, extra = 200, {"x-goog-generation": str(generation)}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked:
            size = len(data)
            first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
            last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
            if first >= size:
                return self.answer(416)
            data, status = data[first : last + 1], 206
            extra["Content-Range"] = f"bytes {first}-{last}/{size}"
        self.answer(status, data, extra)

    def parts(self, body):
        kind = self.headers.get("Content-Type", "")
        if "multipart" not in kind:
            return [body or b"{}", b""]
        boundary = b"--" + re.search('boundary="?([^";]+)', kind)[1].encode()
        chunks = body.split(boundary)[1:-1]
        return [
            c.partition(b"\r\n\r\n" if b"\r\n\r\n" in c else b"\n\n")[2]
            .removesuffix(b"\r\n")
            .removesuffix(b"\n")
            for c in chunks
        ]

    def upload(self, name, query, body):
        kind = query.get("uploadType")
        if "upload_id" in query:
            return self.resume(query, body)
        if kind == "resumable":
            token = str(len(self.store.sessions) + 1)
            self.store.sessions[token] = (name, query, b"")
            folder = f"/upload/storage/v1/b/{name.partition('/')[0]}/o"
            place = f"{self.store.url}{folder}?upload_id={token}"
            return self.answer(200, {}, {"Location": place})
        data = self.parts(body)[1] if kind == "multipart" else body
        self.put(name, query, data)

    def resume(self, query, body):
        name, first, held = self.store.sessions[query["upload_id"]]
        held += body
        self.store.sessions[query["upload_id"]] = name, first, held
        if (self.headers.get("Content-Range") or "/1").endswith("/*"):
            return self.answer(308, b"", {"Range": f"bytes=0-{len(held) - 1}"})
        self.put(name, first, held)

    def put(self, name, query, data):
        status, _ = self.store.change("POST", name, query, data)
        with self.store.lock:
            about = self.about(name) if status == 200 else {"error": {"code": status}}
        self.answer(status, about)

    def copy(self, source, name, query):
        if source not in self.store.objects:
            return self.answer(404)
        status, _ = self.store.change(
            "POST", name, query, self.store.objects[source][0]
        )
        self.answer(status, {"done": True, "resource": self.about(name)})

    def batch(self, body):
        """Deletes many, as gcsfs asks for it."""
        kind, boundary = self.headers["Content-Type"], "batch_answer"
        message = email.message_from_bytes(
            b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
        )
        answers = ""
        for part in message.get_payload():
            line = part.get_payload().strip().split()[1]
            found = OBJECTS.fullmatch(urllib.parse.urlsplit(line).path)
            name = f"{found[1]}/{urllib.parse.unquote(found[2])}"
            status, _ = self.store.change("DELETE", name, {})
            status = 204 if status == 200 else status
            answers += (
                f"--{boundary}\r\nContent-Type: application/http\r\n"
                f"Content-ID: <response-{part['Content-ID'].strip('<>')}>\r\n\r\n"
                f"HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n\r\n"
            )
        answers += f"--{boundary}--\r\n"
        self.answer(
            200,
            answers.encode(),
            {"Content-Type": f"multipart/mixed; boundary={boundary}"},
        )

    def drop(self):
        self.close_connection = True
        self.connection.shutdown(2)

    def answer(self, status, body=b"", extra=None):
        if self.lost:
            return self.drop()
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {"Content-Type": "application/json", **(extra or {})}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(data)
