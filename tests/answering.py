"""A worker of OpenAI clients that tests drive by the store: the API waits for its job, and this runs it."""

import itertools
import json
import threading

from helpers import wait_until

from ownpod.rules.jobs import JobStatus
from ownpod.rules.runs import Outcome

_claims = itertools.count()


class Answering:
    """Runs the next job of an endpoint in a thread. ``steps``: called with this object; what it raises is raised at the end."""

    def __init__(self, store, steps, *, endpoint="ep", worker="w1"):
        self.store, self.endpoint, self.worker = store, endpoint, worker
        self.attempt = None
        self._steps, self._error = steps, None
        self._seen = {entry.job.id for entry in self._jobs()}
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *raised):
        self._thread.join(100)
        if self._error is not None and raised[0] is None:
            raise self._error

    def _jobs(self):
        return self.store.listing.recent(self.endpoint, status=None, before=None, limit=50)[0]

    def _new(self):
        return next((e.job.id for e in self._jobs() if e.job.id not in self._seen), None)

    def _run(self):
        try:
            self.job_id = wait_until(self._new)
            self._steps(self)
        except Exception as error:  # noqa: BLE001 - raised in the test
            self._error = error

    def claim(self):
        self.attempt = self.store.jobs.claim(
            self.job_id, worker_id=self.worker, claim=f"c{next(_claims)}", lease_s=60
        )
        return json.loads(self.attempt.input)

    def chunk(self, *values):
        texts = [json.dumps(value) for value in values]
        return self.store.chunks.add(self.job_id, self.attempt.number, texts)

    def finish(self, output=None, *, error=None, status=None):
        state = status or (JobStatus.FAILED if error is not None else JobStatus.COMPLETED)
        text = output if output is None or isinstance(output, str) else json.dumps(output)
        self.store.jobs.finish(self.attempt, Outcome(state, output=text, error=error))

    def lose(self):
        self.store.jobs.requeue(self.job_id, self.attempt.number, lost=True, reason="gone")

    def job(self):
        return self.store.jobs.get(self.job_id, self.endpoint)


def answering(store, output, **options):
    """A worker that completes the next job with this output."""

    def steps(worker):
        worker.claim()
        worker.finish(output)

    return Answering(store, steps, **options)


def error_of(response):
    """The status, the message and the headers for repeating of an error in OpenAI's shape."""
    assert response.content_type == "application/json"
    (body,) = response.json.values()
    assert body.keys() == {"message", "type", "param", "code"}
    headers = response.headers
    return (
        response.status_code,
        body["message"],
        headers.get("x-should-retry"),
        headers.get("Retry-After"),
    )
