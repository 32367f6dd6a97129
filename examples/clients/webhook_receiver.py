"""Takes OwnPod's webhooks, and checks their signature: python webhook_receiver.py 9000

Submit with {"input": ..., "webhook": "http://<this host>:9000/"}; set OWNPOD_WEBHOOK_SECRET here and
for OwnPod. An answer of 2xx is a receipt; anything else is tried again.
"""

import hashlib
import hmac
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SECRET = os.environ.get("OWNPOD_WEBHOOK_SECRET")
OLDEST_S = 300


def is_genuine(headers, body: bytes) -> bool:
    """HMAC-SHA256 of "<timestamp>.<body>" with the secret; not too old, so that none is replayed."""
    timestamp = headers.get("X-OwnPod-Timestamp", "")
    if not timestamp.isdecimal() or abs(time.time() - int(timestamp)) > OLDEST_S:
        return False
    signed = f"{timestamp}.".encode() + body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, headers.get("X-OwnPod-Signature", ""))


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        genuine = SECRET is None or is_genuine(self.headers, body)
        self.send_response(200 if genuine else 401)
        self.end_headers()
        if genuine:
            job = json.loads(body)
            # A webhook may come twice: go by the id.
            print(job["id"], job["status"], json.dumps(job.get("output")), flush=True)

    def log_message(self, *_: object) -> None:
        pass


HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
