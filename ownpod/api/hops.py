"""Jobs that another OwnPod has sent on."""

import re

from flask import request

from ownpod.errors import BadRequest
from ownpod.rules.overflow import HOPS_HEADER, MOST_HOPS

_HOPS = re.compile(r"[0-9]")


def requested_hops() -> int:
    """The number of OwnPods that this request's job has come through.

    Raises:
        BadRequest: the header is no number, or the job has come through too many: two OwnPods would send it to each other.
    """
    text = request.headers.get(HOPS_HEADER, "0")
    if not _HOPS.fullmatch(text):
        raise BadRequest(f"{HOPS_HEADER}: must be a whole number from 0 to 9")
    if int(text) > MOST_HOPS:
        raise BadRequest(
            f"{HOPS_HEADER}: the job has come through {text} OwnPods, and {MOST_HOPS} is the most"
        )
    return int(text)
