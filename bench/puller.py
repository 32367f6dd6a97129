"""A worker that asks for jobs as the SDK does, with no-ops and without its pauses, so that a job's time is OwnPod's."""

import http.client
import json
import os
import time
from urllib.parse import urlsplit

GET = os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", os.environ["RUNPOD_POD_ID"])
DONE = os.environ["RUNPOD_WEBHOOK_POST_OUTPUT"].replace(
    "$RUNPOD_POD_ID", os.environ["RUNPOD_POD_ID"]
)
KEY = {"Authorization": os.environ["RUNPOD_AI_API_KEY"]}


def path_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


def ask(
    connection: http.client.HTTPConnection, method: str, url: str, body: str | None = None
) -> tuple[int, bytes]:
    connection.request(method, path_of(url), body, KEY)
    answer = connection.getresponse()
    return answer.status, answer.read()


def main() -> None:
    connection = http.client.HTTPConnection(urlsplit(GET).netloc, timeout=120)
    while True:
        try:
            status, body = ask(connection, "GET", GET)
            if status == 200 and body:
                job = json.loads(body)
                time.sleep(job["input"].get("seconds", 0))
                url = f"{DONE.replace('$ID', job['id'])}&isStream=false"
                ask(connection, "POST", url, json.dumps({"output": {"ok": True}}))
        except (OSError, http.client.HTTPException):
            connection.close()
            time.sleep(0.1)


main()
