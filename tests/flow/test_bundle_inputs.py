"""Input that a bundle has not taken yet, and the bundles beside it."""

from __future__ import annotations

import pytest
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker import data_plane

from transforms.bundle_inputs import take_input_without_waiting


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> data_plane._GrpcDataChannel:
    """A channel of data, as a worker has one, with Beam's own bound at first."""
    monkeypatch.setattr(data_plane, "_DEFAULT_RECEIVE_QUEUE_MAX_ELEMENTS", 5)
    return data_plane._GrpcDataChannel()


def messages() -> list[beam_fn_api_pb2.Elements]:
    """A hundred messages for a bundle that listens, and then one for another."""
    return [
        beam_fn_api_pb2.Elements(data=[beam_fn_api_pb2.Elements.Data(instruction_id=bundle, data=b"x")])
        for bundle in ["listens"] * 100 + ["other"]
    ]


def test_a_bundle_that_listens_holds_back_no_other(channel: data_plane._GrpcDataChannel) -> None:
    """A bundle that takes none of its input leaves the thread free that reads the others'. With Beam's own bound it would not end."""
    take_input_without_waiting()
    channel._read_inputs(messages())
    (other,) = [next(channel.input_elements("other", ["transform"]))]
    assert other.data == b"x"


def test_nothing_is_lost_of_what_waits(channel: data_plane._GrpcDataChannel) -> None:
    """The bundle that listened finds all of its input."""
    take_input_without_waiting()
    channel._read_inputs(messages())
    found = channel.input_elements("listens", ["transform"])
    assert sum(len(next(found).data) for _ in range(100)) == 100
