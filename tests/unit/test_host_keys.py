"""What `ownpod doctor` finds about keys."""

from dataclasses import replace

from helpers import load_settings

from ownpod.rules.credentials import Credential, digest_of
from ownpod.rules.endpoints import Endpoint
from ownpod.tools.host_check import keys

ENDPOINT = Endpoint("ep", (), 1, 1, 1, 0)


def found(*endpoints, **environ):
    config = load_settings(OWNPOD_WORKERS_FILE="/nowhere", **environ)
    return [finding.says for finding in keys(config, endpoints)]


def test_keys_that_are_kept_from_cloud_workers_open_something():
    listed = {"OWNPOD_OVERFLOW_NEVER_KEYS": "a,b,c,typo"}
    (_, told) = found(OWNPOD_API_KEYS="a", **listed)
    assert told.startswith("3 of OWNPOD_OVERFLOW_NEVER_KEYS are no API key")
    mine = replace(ENDPOINT, api_keys=(Credential(digest_of("c")),))
    (_, told) = found(mine, OWNPOD_API_KEYS="a", OWNPOD_ADMIN_KEYS="b", **listed)
    assert told.startswith("1 of")
    assert len(found(OWNPOD_API_KEYS="a,b,c,typo", **listed)) == 1
