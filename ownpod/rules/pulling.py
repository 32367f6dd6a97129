"""The environment of an unmodified RunPod container that pulls jobs. Pure."""


def worker_environment(endpoint_url: str, worker_id: str, *, key: str) -> dict[str, str]:
    """The environment variables that make an unmodified RunPod container a worker of an endpoint.

    Args:
        endpoint_url: as the container reaches it, for example ``http://10.0.0.5:8000/v2/local-ep``.
        worker_id: the worker's id, of letters, digits, - and _.
        key: one of ``OWNPOD_WORKER_KEYS``. Without worker keys any text but "", because the SDK pings only with a key.
    """
    # The SDK appends "&...", so each URL needs a "?". $ID is the worker's id in the first URL, a run's id in the others.
    return {
        "RUNPOD_WEBHOOK_GET_JOB": f"{endpoint_url}/job-take/$ID?gpu=0",
        "RUNPOD_WEBHOOK_POST_OUTPUT": f"{endpoint_url}/job-done/$RUNPOD_POD_ID/$ID?gpu=0",
        "RUNPOD_WEBHOOK_POST_STREAM": f"{endpoint_url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=0",
        "RUNPOD_WEBHOOK_PING": f"{endpoint_url}/ping/$RUNPOD_POD_ID?gpu=0",
        "RUNPOD_POD_ID": worker_id,
        "RUNPOD_AI_API_KEY": key,
        # Without this the worker ends where it cannot reach the internet.
        "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
    }
