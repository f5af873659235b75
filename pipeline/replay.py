"""``python -m pipeline.replay``: dead letters are sent to the job again, by stage, error and time.

Without ``--send`` it only shows what it would do.
"""

from __future__ import annotations

import argparse
import base64
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import orjson
from confluent_kafka import KafkaError, Message, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from pipeline.options import read_kafka_config, read_place
from pipeline.outputs import ends, open_consumer
from pipeline.settings import Files, Kafka, KafkaConfig
from runners.local.part import StackError
from transforms.dead_letters import PREFIX
from transforms.errors import SettingsError
from transforms.kafka import client_config
from transforms.records import Headers, SourceRecord
from transforms.remote.clock import SystemClock
from transforms.repeats import REPLAY_HEADER

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_IDLE_S = 5.0
_FLUSH_S = 30.0


@dataclass(frozen=True)
class Letter:
    """A dead letter as it lies in a file or topic: the record as it came in, and why it is here."""

    source: SourceRecord
    stage: str
    error: str
    id: str | None


@dataclass(frozen=True)
class Wanted:
    """Which letters to send. An empty set means any; times are Unix milliseconds of the record, the second one not included."""

    stages: frozenset[str] = frozenset()
    errors: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None

    def fits(self, letter: Letter) -> bool:
        """Whether a letter is wanted."""
        at_ms = letter.source.event_time_ms
        return (
            (not self.stages or letter.stage in self.stages)
            and (not self.errors or letter.error in self.errors)
            and (self.since_ms is None or at_ms >= self.since_ms)
            and (self.until_ms is None or at_ms < self.until_ms)
        )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message[0].upper()}{message[1:]}. See --help.")


def parser() -> argparse.ArgumentParser:
    """The parser of the flags."""
    own = _Parser(prog="python -m pipeline.replay", description=__doc__, allow_abbrev=False)
    add = own.add_argument
    add(
        "--from",
        dest="source",
        required=True,
        metavar="WHERE",
        help="a file of dead letters, or kafka://HOST:PORT/TOPIC",
    )
    add(
        "--to",
        dest="target",
        metavar="WHERE",
        help="a new file, or kafka://HOST:PORT/TOPIC (default: from Kafka, where each came from)",
    )
    add(
        "--stage",
        action="append",
        default=[],
        metavar="NAME",
        help="only of this stage, such as ask; may be given again",
    )
    add(
        "--error",
        action="append",
        default=[],
        metavar="NAME",
        help="only of this kind, such as deadline; may be given again",
    )
    add("--since", metavar="TIME", help="only records from this time on, RFC 3339")
    add("--until", metavar="TIME", help="only records before this time, RFC 3339")
    add("--kafka_config", metavar="FILE", help="as for `python -m pipeline`")
    add("--send", action="store_true", help="send them; without it nothing is written")
    return own


def main(arguments: Sequence[str] | None = None) -> int:
    """Shows which letters would be sent, or sends them; returns the exit status: 0 done, 1 failed, 2 wrong use."""
    try:
        return run(parser().parse_args(arguments))
    except SettingsError as error:
        print(f"farcall: {error}", file=sys.stderr)
        return 2
    except StackError as error:
        print(f"farcall: {error}", file=sys.stderr)
        return 1


def run(given: argparse.Namespace) -> int:
    """Does what the flags say.

    Raises SettingsError for what is wrong with them, StackError where Kafka took less than it was given.
    """
    wanted = Wanted(
        frozenset(given.stage), frozenset(given.error), time_of("--since", given.since), time_of("--until", given.until)
    )
    config = read_kafka_config(given.kafka_config)
    source = read_place("--from", given.source)
    target = None if given.target is None else read_place("--to", given.target)
    _check(source, target)
    found = list(letters(source, config))
    chosen = [letter for letter in found if wanted.fits(letter)]
    console = Console(highlight=False, soft_wrap=True)
    show(console, chosen, len(found), _where(source, target))
    if not given.send:
        console.print("nothing was sent; --send sends them")
    elif isinstance(target, Files):
        write(Path(target.paths[0]), chosen)
        console.print(f"wrote {len(chosen)} events; run them with --input={target.paths[0]}")
    elif chosen:
        kafka = target if isinstance(target, Kafka) else source
        assert isinstance(kafka, Kafka)  # noqa: S101 - files need a --to
        topic = target.topics[0] if isinstance(target, Kafka) else None
        send(chosen, kafka.servers, topic, config, SystemClock().now_ms())
        console.print(f"sent {len(chosen)} events")
    return 0


def _check(source: Files | Kafka, target: Files | Kafka | None) -> None:
    if isinstance(source, Files) and target is None:
        raise SettingsError("--to is missing; dead letters of a file do not say which Kafka they came from.")
    if isinstance(target, Files) and os.path.exists(target.paths[0]):
        raise SettingsError(f"--to={target.paths[0]}: is there already; name a new file.")
    for flag, place in (("--from", source), ("--to", target)):
        if isinstance(place, Kafka) and len(place.topics) != 1:
            raise SettingsError(f"{flag}: must name one topic: kafka://HOST:PORT/TOPIC.")


def _where(source: Files | Kafka, target: Files | Kafka | None) -> str:
    if isinstance(target, Files):
        return target.paths[0]
    if isinstance(target, Kafka):
        return f"{target.topics[0]} at {target.servers}"
    assert isinstance(source, Kafka)  # noqa: S101 - checked
    return f"the topics they came from at {source.servers}"


def time_of(flag: str, text: str | None) -> int | None:
    """Unix milliseconds of an RFC 3339 time with an offset. Raises SettingsError for anything else."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        time = None  # type: ignore[assignment]
    if time is None or time.tzinfo is None:
        raise SettingsError(f"{flag}={text}: is no time with an offset; write it like 2026-03-02T09:15:00Z.")
    return round(time.astimezone(UTC).timestamp() * 1_000)


def letters(source: Files | Kafka, config: KafkaConfig) -> Iterator[Letter]:
    """The dead letters of a file or topic, up to where it ends now. Raises SettingsError for what is no dead letter."""
    if isinstance(source, Kafka):
        yield from _from_kafka(source, config)
        return
    for path in source.paths:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield letter_of(line, f"line {number} of {path}")


def letter_of(line: bytes, where: str) -> Letter:
    """A dead letter from its JSON. Raises SettingsError, with `where`, for what is none."""
    try:
        facts = orjson.loads(line)
        headers = tuple((one["name"], _bytes_of(one, "value")) for one in facts["headers"])
        source = SourceRecord(
            value=_bytes_of(facts, "value"),
            key=_bytes_of(facts, "key"),
            headers=headers,
            topic=facts["topic"],
            partition=facts["partition"],
            offset=facts["offset"],
            event_time_ms=facts["event_time_ms"],
        )
        return Letter(source, facts["stage"], facts["error_type"], facts["id"])
    except (ValueError, KeyError, TypeError):
        raise SettingsError(f"--from: {where} is no dead letter of this program.") from None


def _bytes_of(facts: dict[str, Any], name: str) -> bytes | None:
    if f"{name}_base64" in facts:
        return base64.b64decode(facts[f"{name}_base64"], validate=True)
    value = facts[name]
    return None if value is None else str(value).encode()


def _from_kafka(source: Kafka, config: KafkaConfig) -> Iterator[Letter]:
    consumer = open_consumer(source.servers, config.producer, "farcall-replay")
    try:
        (topic,) = source.topics
        rest = {end.partition: end.offset for end in ends(consumer, source.servers, topic)}
        starts = {
            number: consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=8.0)[0] for number in rest
        }
        rest = {number: end for number, end in rest.items() if end > starts[number]}
        consumer.assign([TopicPartition(topic, number, starts[number]) for number in rest])
        while rest:
            messages = consumer.consume(500, _IDLE_S)
            if not messages:
                raise SettingsError(
                    f"Kafka at {source.servers} gave nothing for {_IDLE_S:g} s before the end of {topic}."
                )
            for message in messages:
                number, offset = message.partition() or 0, message.offset() or 0
                if message.error() is None and number in rest and offset < rest[number]:
                    yield letter_from(message)
                    if offset + 1 >= rest[number]:
                        del rest[number]
    finally:
        consumer.close()


def letter_from(message: Message) -> Letter:
    """A dead letter from a record with Kafka Connect's headers. Raises SettingsError for one without them."""
    headers: Headers = tuple(message.headers() or ())
    facts = {
        name.removeprefix(PREFIX): (value or b"").decode("utf-8", "replace")
        for name, value in headers
        if name.startswith(PREFIX)
    }
    if not {"stage", "exception.class.name", "topic"} <= facts.keys():
        raise SettingsError(
            f"--from: offset {message.offset()} of {message.topic()} is no dead letter: it has no {PREFIX}… headers."
        )
    own = tuple((name, value) for name, value in headers if not name.startswith(PREFIX))
    at_ms = (message.timestamp() or (0, 0))[1]
    source = SourceRecord(
        value=message.value(), key=message.key(), headers=own, topic=facts["topic"], event_time_ms=at_ms
    )
    return Letter(source, facts["stage"], facts["exception.class.name"], facts.get("id"))


def show(console: Console, chosen: Sequence[Letter], found: int, where: str) -> None:
    """Prints how many of which stage and kind go where."""
    table = Table(title=f"{len(chosen)} of {found} dead letters → {where}", title_justify="left")
    for name in ("stage", "error", "first", "last", "count"):
        table.add_column(name, justify="right" if name == "count" else "left")
    counts = Counter((letter.stage, letter.error) for letter in chosen)
    for (stage, error), count in sorted(counts.items()):
        times = [letter.source.event_time_ms for letter in chosen if (letter.stage, letter.error) == (stage, error)]
        table.add_row(stage, error, _time(min(times)), _time(max(times)), str(count))
    console.print(table)


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1_000, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def write(path: Path, chosen: Iterable[Letter]) -> None:
    """Writes the values to a new file, one a line, for a run with `--input`.

    Raises SettingsError for a value with a line end in it.
    """
    values = [letter.source.value or b"" for letter in chosen]
    for letter, value in zip(chosen, values, strict=True):
        if re.search(rb"[\r\n]", value):
            raise SettingsError(f"The event {letter.id} has a line end in it, so no file of lines; send it to Kafka.")
    with path.open("xb") as file:
        file.writelines(value + b"\n" for value in values)


def send(chosen: Sequence[Letter], servers: str, topic: str | None, config: KafkaConfig, now_ms: int) -> None:
    """Sends the records as they came in, with `REPLAY_HEADER` behind their headers, so that they are not taken for repeats.

    Its value is the stage and `now_ms`, by which a run tells the outcomes of an event that is sent twice.
    To `topic`, or where that is None to where each came from. Raises StackError where one was not acknowledged,
    SettingsError where one came from no topic.
    """
    for letter in chosen:
        if topic is None and not _TOPIC.fullmatch(letter.source.topic):
            raise SettingsError(
                f"The event {letter.id} came from {letter.source.topic}, which is no topic; name one with --to."
            )
    producer = Producer({**client_config(servers, config.producer), "acks": "all"})
    failed: list[KafkaError] = []

    def report(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failed.append(error)

    for letter in chosen:
        source = letter.source
        headers = [
            *(one for one in source.headers if one[0] != REPLAY_HEADER),
            (REPLAY_HEADER, b"%s %d" % (letter.stage.encode(), now_ms)),
        ]
        producer.produce(
            topic or source.topic,
            value=source.value,
            key=source.key,
            headers=headers,
            timestamp=source.event_time_ms,
            on_delivery=report,
        )
        producer.poll(0)
    left = producer.flush(_FLUSH_S)
    if left or failed:
        why = failed[0].str() if failed else f"no answer within {_FLUSH_S:g} s"
        raise StackError(f"Kafka at {servers} did not take {left + len(failed)} of {len(chosen)} events: {why}.")


if __name__ == "__main__":
    sys.exit(main())
