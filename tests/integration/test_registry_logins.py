"""The credentials with which an agent pulls images, from Redis."""

import pytest

from ownpod.agent.engine import EngineError
from ownpod.agent.registry_logins import Login, StoredLogins, no_logins
from ownpod.management import Caller, Registries
from ownpod.rules.catalog import Door, registry_secret
from ownpod.store.catalog import Catalog
from ownpod.store.client import connect
from ownpod.store.secrets import Secrets


@pytest.fixture
def secrets(client, tmp_path):
    return Secrets(client, tmp_path / "secrets.key")


@pytest.fixture
def saved(client, secrets):
    registries = Registries(Catalog(client), secrets)
    return registries.save("hub", "me", "a-password", Caller("x", Door.CLI)).row.id


def test_stored_credentials_are_found_by_their_id(client, secrets, saved):
    logins = StoredLogins(Catalog(client), secrets)
    assert logins(saved) == Login("me", "a-password")
    assert logins("") is None
    assert "a-password" not in repr(logins(saved))


def test_missing_credentials_are_one_plain_sentence(client, secrets, saved):
    logins = StoredLogins(Catalog(client), secrets)
    with pytest.raises(EngineError, match="'nothere' are not there"):
        logins("nothere")
    secrets.remove(registry_secret(saved))
    with pytest.raises(EngineError, match="are not there"):
        logins(saved)
    with pytest.raises(EngineError, match="are not there"):
        no_logins("x")


def test_a_host_without_the_key_file_says_what_to_do(client, saved, tmp_path):
    logins = StoredLogins(Catalog(client), Secrets(client, tmp_path / "other.key"))
    with pytest.raises(EngineError, match="copy it"):
        logins(saved)


def test_a_redis_that_is_away_is_an_error_of_the_engine(tmp_path):
    away = connect("redis://127.0.0.1:1/0")
    logins = StoredLogins(Catalog(away), Secrets(away, tmp_path / "secrets.key"))
    with pytest.raises(EngineError, match="cannot be read"):
        logins("abc")
