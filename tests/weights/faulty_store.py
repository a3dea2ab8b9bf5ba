"""A server that stands before another one and lets single answers go wrong."""

import http.client
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PASSED = ("content-type", "etag", "last-modified", "accept-ranges", "content-range")


class FaultyStore:
    """Passes requests on to ``behind``, but for what ``fault(method, path)`` answers first.

    A fault is a status; ``"cut"`` or ``"flip"``, which spoils the body; ``"silent"``, which sends
    half of it and then nothing; or None.
    """

    def __init__(self, behind):
        self.fault = lambda method, path: None
        self.requests = []
        self.stopped = threading.Event()
        store, host = self, behind.removeprefix("http://")

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                store.requests.append((self.command, self.path))
                fault = store.fault(self.command, self.path)
                if isinstance(fault, int):
                    self.send_response(fault)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                connection = http.client.HTTPConnection(host)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                connection.request(self.command, self.path, body, dict(self.headers))
                answer = connection.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() in PASSED or name.lower().startswith("x-amz"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.send_body(data, fault)

            def send_body(self, data, fault):
                if fault == "flip":
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if fault in ("cut", "silent"):
                    data = data[: len(data) // 2]
                    self.close_connection = True
                self.wfile.write(data)
                if fault == "silent":
                    self.wfile.flush()
                    store.stopped.wait(60)  # whoever asks has given up by then

            do_GET = do_HEAD = do_PUT = do_DELETE = answer

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self._thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self._thread.start()

    def stop(self):
        self.stopped.set()
        self.server.shutdown()
        self.server.server_close()
