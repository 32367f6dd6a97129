"""The numbers of ``ownpod top``."""

from ownpod.tools.top import Poller


class OneEndpoint:
    """A client whose endpoint has ended some jobs."""

    def __init__(self):
        self.endpoint = ""
        self.completed = 100

    def endpoints(self):
        return ["ep"]

    def call(self, method, path):
        assert (method, path, self.endpoint) == ("GET", "/health", "ep")
        return {"jobs": {"completed": self.completed, "failed": 1}}


def test_the_rate_counts_jobs_that_ended_since_the_poll_before():
    client = OneEndpoint()
    poller = Poller(client)
    assert poller.poll()["ep"]["perSecond"] == 0
    client.completed += 3
    assert poller.poll()["ep"]["perSecond"] > 0
    assert poller.poll()["ep"]["perSecond"] == 0
