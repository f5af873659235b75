"""The ports of the local stack."""

from __future__ import annotations

import socket

import pytest

from runners.local import ports
from runners.local.ports import Ports
from transforms.errors import SettingsError


def test_named_ports_change_and_the_others_stay() -> None:
    """--ports changes what it names and nothing else."""
    assert Ports.parse("kafka=29092, job-server=28099") == Ports(kafka=29092, job_server=28099)
    assert Ports.parse("llm=5", Ports(kafka=29092)) == Ports(kafka=29092, llm=5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("zookeeper=1", ["zookeeper", "job-server"]),
        ("kafka=x", ["kafka=x", "65535"]),
        ("kafka=0", ["kafka=0", "65535"]),
        ("kafka", ["kafka", "65535"]),
        ("kafka=7,llm=7", ["Port 7", "kafka", "llm", "--ports llm=PORT"]),
    ],
)
def test_wrong_ports_are_refused_with_what_is_wrong(text: str, words: list[str]) -> None:
    """An unknown name, a number that is no port and a port given twice are each refused by name."""
    with pytest.raises(SettingsError) as refused:
        Ports.parse(text)
    assert all(word in str(refused.value) for word in words)


def test_a_taken_port_is_refused_with_port_part_and_flag() -> None:
    """The sentence about a taken port names the port, the part that needs it and the flag that changes it."""
    with socket.socket() as other:
        other.bind((ports.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SettingsError) as refused:
            ports.refuse_taken(Ports(job_server=port), [("jobserver", "job_server")])
    sentence = str(refused.value)
    assert str(port) in sentence
    assert "jobserver" in sentence
    assert "--ports job-server=PORT" in sentence


def test_a_port_taken_on_all_addresses_counts_as_taken() -> None:
    """A listener on 0.0.0.0 takes the port of 127.0.0.1 too."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        assert ports.is_taken(other.getsockname()[1])


def test_free_ports_differ_and_are_free() -> None:
    """`Ports.free` gives every part a port of its own which nobody holds."""
    found = Ports.free()
    assert len(set(found.as_dict().values())) == len(ports.names())
    assert not any(map(ports.is_taken, found.as_dict().values()))
