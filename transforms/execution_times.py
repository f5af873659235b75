"""What Beam's record of execution times costs: the end of each bundle waits for a thread that sleeps.

For the times that a bundle spends in each of its steps, Beam starts a thread with the bundle, which looks every 2 ms at first and then
less and less often, and waits for it at the end (`StateSampler` in ``statesampler_fast.pyx``). It sleeps a fifth as long as the bundle
has lasted, so that a bundle in which a step listens for 50 ms ends 5 ms later on average (docs/adr/0025 has figures).
"""

from __future__ import annotations

import threading
from typing import Any

from apache_beam.runners.worker import statesampler

_SAMPLES = "_farcall_samples"


def end_without_sampling() -> None:
    """Let bundles of this process begin and end without that thread, from the next one on. To be called in a step's `setup`.

    Execution times (``*-msecs``, and what the worker logs of steps that take minutes) then read 0; which step's metrics are counted
    is known as before. Times that say something are the client's (docs/reference/metrics.md).
    """
    sampler: Any = statesampler.StateSampler
    if hasattr(sampler, _SAMPLES):
        return
    stop_sampling = sampler.stop

    def start(self: Any) -> None:
        self.tracked_thread = threading.current_thread()
        statesampler.set_current_tracker(self)
        setattr(self, _SAMPLES, False)
        self.started = True

    def stop(self: Any) -> None:
        if getattr(self, _SAMPLES):
            # It began before this was in place: its thread must be ended.
            stop_sampling(self)
        else:
            statesampler.set_current_tracker(None)
            self.finished = True

    setattr(sampler, _SAMPLES, True)
    sampler.start, sampler.stop = start, stop
