"""What Kafka's clients are told."""

from __future__ import annotations

from typing import Any

import pytest

from transforms import kafka
from transforms.errors import SettingsError
from transforms.kafka_read import check_config


def test_our_own_clients_get_the_connection_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connection settings reach our consumers with their secrets resolved; a producer's own settings do not."""
    monkeypatch.setenv("KAFKA_PASSWORD", "s3cret")
    given = {"sasl.password": "${env:KAFKA_PASSWORD}", "security.protocol": "SASL_SSL", "linger.ms": "5"}
    config: dict[str, Any] = kafka.client_config("h:1", given)
    assert config["sasl.password"] == "s3cret"
    assert config["bootstrap.servers"] == "h:1"
    assert "linger.ms" not in config


def test_consumer_settings_are_checked_before_a_job_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name of Java's, or a value that is none, is refused with a sentence; a secret is looked up, and good settings pass."""
    for config, wrong in (
        (
            {"sasl.jaas.config": "${env:KAFKA_PASSWORD}"},
            r"librdkafka's names: Java JAAS configuration is not supported",
        ),
        ({"auto.offset.reset": "newest"}, r"auto\.offset\.reset"),
    ):
        monkeypatch.setenv("KAFKA_PASSWORD", "s3cret")
        with pytest.raises(SettingsError, match=wrong) as found:
            check_config(config)
        assert "s3cret" not in str(found.value)
    check_config({"auto.offset.reset": "latest", "group.id": "mine"})


def test_a_secret_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set is an error that names it."""
    monkeypatch.delenv("KAFKA_PASSWORD", raising=False)
    with pytest.raises(SettingsError, match="KAFKA_PASSWORD"):
        kafka.client_config("h:1", {"sasl.password": "${env:KAFKA_PASSWORD}"})
