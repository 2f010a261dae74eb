"""Settings from the environment: typed, bounded, named in the help, and silent about tokens."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest

from serving.service.server import listeners
from serving.service.settings import Settings, described, unknown_variables, variable
from vae_anomaly.exceptions import ConfigError

TOKEN = "correct-horse-battery"


def test_defaults_are_those_of_the_design() -> None:
    settings = Settings.from_environment({})
    assert (settings.max_body_bytes, settings.max_rows, settings.max_cells) == (16 * 2**20, 10_000, 2_000_000)
    assert (settings.max_json_depth, settings.receive_deadline, settings.request_deadline) == (8, 10.0, 30.0)
    assert settings.host == "127.0.0.1"
    assert settings.token_digests == ()


def test_the_environment_is_read_and_what_is_given_wins() -> None:
    environment = {
        "VAE_ANOMALY_PORT": " 9000 ",
        "VAE_ANOMALY_MAX_ROWS": "5",
        "VAE_ANOMALY_RECEIVE_DEADLINE": "0.5",
        "VAE_ANOMALY_ALLOWED_HOSTS": "Api.Example.com, other",
        "VAE_ANOMALY_OPS_PORT": "",
    }
    settings = Settings.from_environment(environment, max_rows=7, host=None)
    assert (settings.port, settings.max_rows, settings.receive_deadline) == (9000, 7, 0.5)
    assert settings.allowed_hosts == ("api.example.com", "other")
    assert settings.ops_port is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PORT": "many"}, "VAE_ANOMALY_PORT is 'many'; expected a whole number"),
        ({"RECEIVE_DEADLINE": "soon"}, "VAE_ANOMALY_RECEIVE_DEADLINE is 'soon'; expected a number"),
        ({"RECEIVE_DEADLINE": "nan"}, "VAE_ANOMALY_RECEIVE_DEADLINE is nan; expected 0.01 or more"),
        ({"PORT": "70000"}, "VAE_ANOMALY_PORT is 70000; expected 0 to 65535"),
        ({"MAX_ROWS": "0"}, "VAE_ANOMALY_MAX_ROWS is 0; expected 1 or more"),
        ({"TOKEN": "short"}, "VAE_ANOMALY_TOKEN has 5 characters; expected 16 to 512 of A-Z a-z 0-9 ._~+/-"),
        (
            {"TOKEN_NEXT": TOKEN},
            "VAE_ANOMALY_TOKEN_NEXT is set without VAE_ANOMALY_TOKEN; set that first",
        ),
        (
            {"HOST": "0.0.0.0"},
            "host '0.0.0.0' is reached from outside; set VAE_ANOMALY_TOKEN, or listen on 127.0.0.1",
        ),
        ({"LOG_LEVEL": "loud"}, "VAE_ANOMALY_LOG_LEVEL is 'loud'; choose debug, info, warning or error"),
    ],
    ids=["int", "float", "nan", "most", "least", "token", "rotation", "host", "level"],
)
def test_a_bad_setting_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        Settings.from_environment({variable(name): value for name, value in environment.items()})


def test_outside_of_loopback_a_token_is_enough() -> None:
    settings = Settings(host="0.0.0.0", token=TOKEN, token_next=TOKEN[::-1])
    assert len(settings.token_digests) == 2
    assert TOKEN not in repr(settings)
    assert TOKEN[::-1] not in repr(settings)


def test_every_setting_is_described() -> None:
    found = described()
    assert [name for name, _, _ in found] == [variable(item.name) for item in fields(Settings)]
    assert all(meaning for _, _, meaning in found)
    assert ("VAE_ANOMALY_MAX_BODY_BYTES", "16777216", "bytes of a request body") in found


def test_misspelt_variables_are_pointed_out() -> None:
    environment = {"VAE_ANOMALY_PROT": "1", "VAE_ANOMALY_CACHE": "x", "PATH": "y", "VAE_ANOMALY_PORT": "2"}
    assert unknown_variables(environment, ("VAE_ANOMALY_CACHE",)) == [
        "VAE_ANOMALY_PROT is no setting; did you mean VAE_ANOMALY_PORT?"
    ]


def test_a_taken_port_is_one_sentence() -> None:
    [taken] = listeners(Settings(port=0))
    port = taken.getsockname()[1]
    message = f"cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port"
    with taken, pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        listeners(Settings(port=port))
