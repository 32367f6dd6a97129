"""Receives OwnPod's webhooks and checks their signature: python webhook_receiver.py 9000

Submit jobs with {"input": ..., "webhook": "http://<this host>:9000/"}, and set OWNPOD_WEBHOOK_SECRET for this program
and for OwnPod. A status of 2xx confirms the webhook. After any other status OwnPod sends the webhook again.
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
"""Maximum age of a webhook in seconds, because a recorded webhook could be sent again."""


def is_genuine(headers, body: bytes) -> bool:
    """Whether the signature is the HMAC-SHA256 of "<timestamp>.<body>" with the secret, and the webhook is not too old."""
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
            # A webhook may arrive twice. Programs that act on it must check the id.
            print(job["id"], job["status"], json.dumps(job.get("output")), flush=True)

    def log_message(self, *_: object) -> None:
        pass


HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
