"""What Beam's channel of data costs: a bundle that does not take its input holds back that of all others.

One thread of a worker reads what the runner sends to all its bundles and lays it into a queue for each. Such a queue holds five
messages; where it is full the thread waits, and no other bundle gets a record or a timer meanwhile (`_GrpcDataChannel._read_inputs`
in ``data_plane.py``, Beam 2.77). A step that listens takes nothing for as long as it does, and small buffers on the runner's side
make many messages: the timers of the source waited for the step's (docs/adr/0028).
"""

from __future__ import annotations

from apache_beam.runners.worker import data_plane

MOST_MESSAGES = 10_000
"""How many messages a queue holds. Its other bound, 100 MB of them, stays Beam's."""


def take_input_without_waiting() -> None:
    """Let bundles of this process, from the next one on, hold as much input as Beam's bound in bytes allows.

    To be called in a step's `setup`.
    """
    data_plane._DEFAULT_RECEIVE_QUEUE_MAX_ELEMENTS = MOST_MESSAGES  # noqa: SLF001 - there is no option for it
