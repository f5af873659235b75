"""`Apply`: a function as a step with two roads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from tests.flow.doubles import DIRECT, beam_options
from transforms.apply import MAX_MESSAGE, Apply, Count
from transforms.errors import BadEvent, BadReply, SettingsError, Unavailable
from transforms.metrics import counter
from transforms.records import DeadLetter, OutputRecord, SourceRecord


def record(text: str) -> SourceRecord:
    return SourceRecord(value=text.encode(), key=b"k", headers=(("h", None),), topic="t", offset=len(text))


def convert(one: SourceRecord) -> OutputRecord:
    """Good, or as bad as the record says."""
    text = (one.value or b"").decode()
    if text == "bad event":
        raise BadEvent("not-json", "This is no JSON.")
    if text == "bad reply":
        raise BadReply("blank", "This says nothing.")
    if text == "long":
        raise BadEvent("long", "ä" * (MAX_MESSAGE + 1))
    if text == "mistake":
        raise KeyError("field")
    if text == "settings":
        raise SettingsError("A mistake of ours, which is no BadEvent.")
    if text == "away":
        raise Unavailable("What the step needs does not answer.")
    return OutputRecord("out", one.value)


class Prepared:
    """A function that must be made ready where it runs."""

    ready = False

    def setup(self) -> None:
        self.ready = True

    def __call__(self, one: SourceRecord) -> OutputRecord:
        assert self.ready
        return convert(one)


def itself(one: SourceRecord) -> SourceRecord:
    return one


def read_id(one: SourceRecord) -> str | None:
    return None if one.value == b"mistake" else f"id of {(one.value or b'').decode()}"


def three(_: SourceRecord) -> int:
    return 3


def check(
    texts: list[str], good: list[OutputRecord], bad: list[DeadLetter], attempts_of: Callable[[Any], int] | None = None
) -> Any:
    pipeline = beam.Pipeline(options=beam_options(DIRECT))
    applied = (
        pipeline
        | beam.Create([record(text) for text in texts])
        | beam.ParDo(Count("seen")).with_output_types(SourceRecord)
        | Apply(
            convert, stage="parse", output_type=OutputRecord, source_of=itself, id_of=read_id, attempts_of=attempts_of
        )
    )
    assert_that(applied.good, equal_to(good), label="good")
    assert_that(applied.bad, equal_to(bad), label="bad")
    result = pipeline.run()
    result.wait_until_finish()
    return result


def letter(text: str, kind: str, message: str, attempts: int = 0) -> DeadLetter:
    return DeadLetter(record(text), "parse", kind, message, attempts, read_id(record(text)))


def test_every_record_takes_one_of_two_roads() -> None:
    """What the function gives is good; what it refuses is a dead letter with the untouched record, its kind and sentence."""
    result = check(
        ["a", "bad event", "b", "bad reply"],
        [OutputRecord("out", b"a"), OutputRecord("out", b"b")],
        [letter("bad event", "not-json", "This is no JSON."), letter("bad reply", "blank", "This says nothing.")],
    )
    assert counter(result, "seen") == 4
    assert counter(result, "unseen") is None


@pytest.mark.parametrize(
    ("text", "error"),
    [("mistake", KeyError("field")), ("settings", SettingsError("A mistake of ours, which is no BadEvent."))],
)
def test_any_other_exception_is_a_dead_letter_of_type_error(text: str, error: Exception) -> None:
    """A mistake in the function harms the one record: it is a dead letter that names the step and the exception."""
    message = f"The step parse failed on this record with {error!r}. This is a mistake in the step."
    check(["a", text], [OutputRecord("out", b"a")], [letter(text, "error", message)])


def test_a_long_message_is_cut() -> None:
    """A message that would not fit into a header is cut to its bound."""
    check(["long"], [], [letter("long", "long", "ä" * MAX_MESSAGE)])


def test_the_calls_that_were_made_are_told() -> None:
    """A dead letter says how many calls were made for its record."""
    check(["bad reply"], [], [letter("bad reply", "blank", "This says nothing.", attempts=3)], attempts_of=three)


def test_no_records() -> None:
    """Nothing in, nothing out on either road."""
    check([], [], [])


def test_what_no_record_is_to_blame_for_fails_the_bundle() -> None:
    """Where a service that the step needs does not answer, the bundle fails and nothing becomes a dead letter."""
    with pytest.raises(Unavailable, match="does not answer"):
        check(["away"], [], [])


def test_a_function_is_made_ready_on_the_worker() -> None:
    """A function with a `setup` has it called before the first record."""
    with beam.Pipeline(options=beam_options(DIRECT)) as pipeline:
        applied = (
            pipeline
            | beam.Create([record("a")])
            | Apply(Prepared(), stage="parse", output_type=OutputRecord, source_of=itself, id_of=read_id)
        )
        assert_that(applied.good, equal_to([OutputRecord("out", b"a")]))
