"""Every error this project raises on purpose.

    FarcallError
    ├── SettingsError            a flag, file or setting is wrong; the command line exits 2
    ├── BadEvent                 an event cannot be understood; it becomes a dead letter
    ├── BadReply                 a model's reply breaks a rule; the event becomes a dead letter
    ├── UnknownSchema            a schema registry does not have what a record names
    ├── Unavailable              what a step needs for any record does not answer; the bundle fails and is done again
    └── CallError                a call to a model server did not give a reply
        ├── Transient            may succeed when tried again
        │   ├── Unreachable      no connection, or it broke before a reply was complete
        │   ├── TimedOut         the time allowed for one attempt ran out
        │   ├── Throttled        the server asked for fewer requests (429, or a 503 that asks for time)
        │   ├── ServerFailed     any other answer of the 5xx kind but 501 and 505, and 408, 409, 425
        │   └── BrokenReply      an answer of the 2xx kind that does not follow the protocol
        ├── Refused              the server will not take this request however often it is sent (other 4xx)
        └── DeadlineExceeded     the event's own deadline passed, whatever was under way

The message of each is a sentence that says what was wrong, where, and what to do.
"""

from __future__ import annotations


class FarcallError(Exception):
    """The root of the errors of this project."""


class SettingsError(FarcallError):
    """A flag, file or setting is wrong. Raised before anything is started."""


class BadEvent(FarcallError):  # noqa: N818 - a bad event is data on its way to the dead letters
    """An event cannot be understood.

    `kind` is a short stable word for tables and metrics, such as ``not-json``.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class BadReply(FarcallError):  # noqa: N818 - as BadEvent
    """A reply of a model breaks a rule. `kind` is a short stable word, such as ``blank``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class UnknownSchema(FarcallError):  # noqa: N818 - as BadEvent
    """A schema registry does not have the schema that a record names."""


class Unavailable(FarcallError):  # noqa: N818 - as BadEvent
    """What a step needs for any record does not answer, such as a schema registry.

    No fault of the record, which must not become a dead letter for it: the bundle fails, and the runner does it again.
    """


class CallError(FarcallError):
    """A call to a model server did not give a reply.

    `kind` is a short stable word, the same for every instance of a class.
    """

    kind = "call"


class Transient(CallError):  # noqa: N818 - says what may be done about it
    """The same request may succeed when it is sent again.

    `retry_after_s` is how long the server asked to be left alone, in seconds, or None.
    """

    kind = "transient"

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(Transient):
    """No connection could be made, or it broke before a reply was complete."""

    kind = "unreachable"


class TimedOut(Transient):
    """The time allowed for one attempt ran out."""

    kind = "timeout"


class Throttled(Transient):
    """The server asked for fewer requests."""

    kind = "throttled"


class ServerFailed(Transient):
    """The server failed while it worked on the request."""

    kind = "server-error"


class BrokenReply(Transient):
    """The server answered, but not as its protocol says."""

    kind = "broken-reply"


class Refused(CallError):  # noqa: N818 - the field's word
    """The server will not take this request, however often it is sent. `status` is the HTTP status."""

    kind = "refused"

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class DeadlineExceeded(CallError):  # noqa: N818 - the field's word
    """The deadline of the event passed, whatever was under way."""

    kind = "deadline"
