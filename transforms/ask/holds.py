"""A timer that holds the watermark at a time of ours, rather than at the time at which it is set.

Beam's model gives each timer an output timestamp: until it has fired, the watermark behind the step does not pass it (`Timer` in
beam_fn_api.proto, `hold_timestamp`; Java's `Timer.withOutputTimestamp`). Beam's Python SDK (2.77) has no public way to say it. It
takes the time of the element, and in a timer's own callback the time at which that fired: an event whose call outlasts one firing
would no longer hold the watermark, and its outcome would be late.
"""

from __future__ import annotations

from typing import Any

from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp

# Where Beam's `OutputTimer` keeps the time that becomes `hold_timestamp`. DirectRunner has timers of another kind, and no holds.
HOLD = "_input_timestamp"

HOLDS_NOTHING_US = GlobalWindow().max_timestamp().micros
"""What a timer holds that is to hold nothing, in Unix microseconds: the end of the global window."""

AT_ONCE = "." * 4_096
"""A tag that makes a timer's message so long that it goes to the worker at once when it fires, with what was given before it.

A runner collects what it gives a bundle until its buffer is full, or the bundle ends there. On Flink the buffer is a little smaller
than this (`runners.flink.DATA_BUFFER_SIZE_LIMIT_BYTES`), so that a timer that listens begins with its bundle, while records travel
together (docs/adr/0025). The tag is part of a timer's name: who clears it must give it too.
"""


def set_timer(timer: Any, fire_us: int, hold_us: int, tag: str = "") -> None:
    """Sets `timer` to fire at `fire_us` and to hold the watermark at `hold_us` until then, both in Unix microseconds."""
    if hasattr(timer, HOLD):
        setattr(timer, HOLD, Timestamp(micros=hold_us))
    timer.set(Timestamp(micros=fire_us), dynamic_timer_tag=tag)
