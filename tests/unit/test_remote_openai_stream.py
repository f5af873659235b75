"""Streamed chat replies: the same reply however the stream is cut into pieces, and none from one that was cut off."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest

from transforms.errors import BrokenReply, CallError, Refused, ServerFailed, Throttled, TimedOut
from transforms.remote import names
from transforms.remote.client import Call, Client, Outcome
from transforms.remote.fakes import FakeTransport, Scripted, VirtualClock, answered
from transforms.remote.openai_chat import Message, Reply, parse_reply, request_body
from transforms.remote.openai_stream import ChatStream
from transforms.remote.questions import Chat
from transforms.remote.settings import Endpoint, ModelSettings, RetryPolicy
from transforms.remote.streams import StreamSettings, read_stream


def chunk(*pieces: str | None, finish: str | None = None, **over: Any) -> dict[str, Any]:
    """A chunk with a piece of text for each choice."""
    choices = [
        {"index": index, "delta": {} if piece is None else {"content": piece}, "finish_reason": finish}
        for index, piece in enumerate(pieces)
    ]
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": choices, "usage": None, **over}


USAGE = chunk(usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
FIRST = chunk("", choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])
GOOD = [FIRST, chunk("Grüße, "), chunk("你好 🦆"), chunk(None, finish="stop"), USAGE]
REPLY = Reply("Grüße, 你好 🦆", "stop", "m", 3, 2)


def stream_of(chunks: list[dict[str, Any]], done: bool = True, end: str = "\n") -> bytes:
    events = [json.dumps(one, ensure_ascii=False) for one in chunks] + ["[DONE]"] * done
    return "".join(f"data: {event}{end}{end}" for event in events).encode()


def read(stream: bytes, cuts: list[int] | None = None) -> Reply:
    chat = ChatStream()
    places = [0, *sorted(cuts or []), len(stream)]
    for begin, end in pairwise(places):
        chat.feed(stream[begin:end], 0.0)
    return chat.reply()


def test_a_request_asks_for_a_stream_with_usage() -> None:
    """The body asks for both, and no param can undo it."""
    sent = json.loads(
        request_body("m", (Message("user", "Hi"),), {"stream": False, "stream_options": {}, "top_p": 1}, stream=True)
    )
    assert sent == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "top_p": 1,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


@pytest.mark.parametrize(
    ("chunks", "reply"),
    [
        (GOOD, REPLY),
        (GOOD[:-1], Reply("Grüße, 你好 🦆", "stop", "m")),
        ([chunk("Hi.", finish="length")], Reply("Hi.", "length", "m")),
        ([chunk("Hi.", finish="stop", model=None)], Reply("Hi.", "stop")),
        ([chunk("a", "b"), chunk("c", "d", finish="stop")], Reply("ac", "stop", "m")),
        ([chunk("Hi.", finish="stop"), chunk(choices=None, usage={"prompt_tokens": 1})], Reply("Hi.", "stop", "m", 1)),
        ([chunk(None, finish="stop")], Reply("", "stop", "m")),
        (
            [chunk("Hi."), chunk(None, finish="stop", usage={"completion_tokens": 4})],
            Reply("Hi.", "stop", "m", None, 4),
        ),
        (
            [chunk("Hi.", usage={"completion_tokens": 1}), chunk(finish=None), *GOOD[3:]],
            Reply("Hi.", "stop", "m", 3, 2),
        ),
    ],
)
def test_a_complete_stream_gives_a_reply(chunks: list[dict[str, Any]], reply: Reply) -> None:
    """The first choice's pieces are joined; the last usage and finish_reason count, wherever they stand."""
    assert read(stream_of(chunks)) == reply


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_every_cut_in_two_gives_the_same_reply(end: str) -> None:
    """A stream cut in two at any byte, also inside of a character, or into single bytes gives the same reply."""
    stream = stream_of(GOOD, end=end)
    assert read(stream, list(range(len(stream)))) == REPLY
    for cut in range(len(stream)):
        assert read(stream, [cut]) == REPLY


@pytest.mark.parametrize("seed", range(50))
def test_random_cuts_give_the_same_reply(seed: int) -> None:
    """Any pieces give the same reply, with comments between the events too."""
    chance = random.Random(seed)
    stream = stream_of(GOOD).replace(b"\n\n", b"\n\n: keep-alive\n\n", chance.randrange(5))
    assert read(stream, [chance.randrange(len(stream)) for _ in range(chance.randrange(30))]) == REPLY


@pytest.mark.parametrize("end", ["\n", "\r"])
def test_every_strict_prefix_is_refused(end: str) -> None:
    """A stream that lacks as much as its last byte is no reply."""
    stream = stream_of(GOOD, end=end)
    for length in range(len(stream)):
        with pytest.raises(BrokenReply, match="cut"):
            read(stream[:length])


def test_a_stream_of_crlf_lacks_nothing_without_its_last_lf() -> None:
    """With CRLF the last CR ends the last line; every shorter prefix is refused."""
    stream = stream_of(GOOD, end="\r\n")
    assert read(stream[:-1]) == REPLY
    for length in range(len(stream) - 1):
        with pytest.raises(BrokenReply, match="cut"):
            read(stream[:length])


def test_without_the_rule_on_done_a_prefix_would_pass() -> None:
    """The sibling of the prefix test: a reader that trusts what it has would take half an answer for a whole one."""
    chat = ChatStream()
    chat.feed(stream_of(GOOD[:2], done=False), 0.0)
    chat.done, chat._finish_reason = True, "stop"
    assert chat.reply().text == "Grüße, "


BROKEN = [
    b"",
    b"data: [DONE]\n\n",
    b'{"choices": [{"message": {"content": "Hi."}, "finish_reason": "stop"}]}',
    stream_of([chunk("Hi.")]),
    stream_of([chunk("Hi.", finish="")]),
    stream_of([chunk("Hi.", finish="stop")], done=False),
    stream_of([chunk(None, "b", finish=None), chunk(choices=[{"index": 1, "delta": {}, "finish_reason": "stop"}])]),
    stream_of([chunk("Hi.", finish="stop", usage={"prompt_tokens": -1})]),
    stream_of([chunk(choices={}), chunk("Hi.", finish="stop")]),
    stream_of([chunk(choices=[{"delta": {"content": 1}}]), chunk("Hi.", finish="stop")]),
    stream_of([chunk(None, finish="tool_calls")]),
    b"data: {\n\n" + stream_of(GOOD),
    b"data: null\n\n" + stream_of(GOOD),
    b"data: []\n\n" + stream_of(GOOD),
    b"data: \xff\n\n" + stream_of(GOOD),
    b"data: " + b"[" * 100_000 + b"\n\n" + stream_of(GOOD),
]


@pytest.mark.parametrize("stream", BROKEN, ids=range(len(BROKEN)))
def test_anything_else_is_a_broken_reply(stream: bytes) -> None:
    """A stream without its end, of another shape, or not UTF-8 is a BrokenReply with a sentence."""
    with pytest.raises(BrokenReply) as caught:
        read(stream)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error": {"message": "overloaded", "code": 1302}}\n\n',
        b'data: {"error": {"message": "overloaded", "code": true, "type": ["x"], "status": null}}\n\n',
        b'data: {"error": "overloaded"}\n\n',
        b'event: error\ndata: {"message": "overloaded"}\n\n',
        b"event: error\ndata: overloaded\n\n",
    ],
)
def test_an_error_in_the_stream_ends_it_and_is_quoted(event: bytes) -> None:
    """An error between good chunks makes a BrokenReply that holds the server's own words."""
    stream = stream_of(GOOD[:2], done=False) + event + stream_of(GOOD[2:])
    with pytest.raises(BrokenReply, match="overloaded"):
        read(stream)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 400}, Refused),
        ({"code": "404"}, Refused),
        ({"type": "invalid_request_error", "code": None}, Refused),
        ({"type": "invalid_request_error", "code": "context_length_exceeded"}, Refused),
        ({"type": "authentication_error"}, Refused),
        ({"code": 429}, Throttled),
        ({"type": "tokens", "code": "rate_limit_exceeded"}, Throttled),
        ({"type": "rate_limit_error"}, Throttled),
        ({"type": "insufficient_quota", "code": "insufficient_quota"}, Refused),
        ({"code": 501}, Refused),
        ({"code": 502}, ServerFailed),
        ({"code": 408}, ServerFailed),
        ({"type": "server_error"}, ServerFailed),
        ({"type": "overloaded_error"}, ServerFailed),
        ({"type": "invalid_request_error", "code": 500}, ServerFailed),
        ({"type": "something", "code": "else"}, BrokenReply),
        ({"code": 200}, BrokenReply),
        ({}, BrokenReply),
    ],
)
def test_an_error_in_the_stream_is_that_of_its_status(error: dict[str, Any], kind: type[CallError]) -> None:
    """A number or a known word says what the same status says outside of a stream, in either form of the event."""
    body = json.dumps({"error": {"message": "so it is", **error}}).encode()
    for event in (b"data: " + body, b"event: error\ndata: " + body):
        with pytest.raises(CallError, match="so it is") as caught:
            read(stream_of(GOOD[:2], done=False) + event + b"\n\n")
        assert type(caught.value) is kind


def refusing(*pieces: str, finish: str = "stop") -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None, "refusal": piece} for piece in pieces]
    chunks = [chunk(choices=[{"index": 0, "delta": delta}]) for delta in deltas]
    return [*chunks, chunk(choices=[{"index": 0, "delta": {}, "finish_reason": finish}])]


@pytest.mark.parametrize(
    ("chunks", "message", "match"),
    [
        (refusing("I can ", "not help."), {"content": None, "refusal": "I can not help."}, "refused to answer: I can"),
        ([chunk("He"), *refusing("No.")], {"content": "He", "refusal": "No."}, "refused to answer: No"),
        ([chunk("half an ans"), chunk(None, finish="content_filter")], {"content": "half an ans"}, "filter cut"),
        ([chunk(None, finish="content_filter")], {"content": ""}, "filter cut"),
        ([FIRST, chunk(None, finish="tool_calls")], {"content": ""}, "no text"),
    ],
)
def test_what_is_no_answer_is_none_as_a_stream_and_as_a_whole(
    chunks: list[dict[str, Any]], message: dict[str, Any], match: str
) -> None:
    """A refusal, what a filter cut off, and what is no text are BrokenReply with the same sentence, however they come."""
    finish = chunks[-1]["choices"][0]["finish_reason"]
    body = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).encode()
    with pytest.raises(BrokenReply, match=match) as streamed:
        read(stream_of(chunks))
    with pytest.raises(BrokenReply, match=match) as whole:
        parse_reply(body)
    assert str(streamed.value) == str(whole.value)


def test_an_empty_refusal_says_nothing() -> None:
    """Servers that write the field into every chunk, null or empty, have not refused."""
    deltas = [{"content": "Hi.", "refusal": None}, {"content": "", "refusal": ""}]
    chunks = [chunk(choices=[{"index": 0, "delta": delta}]) for delta in deltas]
    assert read(stream_of([*chunks, chunk(None, finish="stop")])).text == "Hi."


def test_what_comes_after_done_is_not_looked_at() -> None:
    """A complete reply stays one, whatever follows it."""
    assert read(stream_of(GOOD) + b"data: {\n\n") == REPLY


def test_a_stream_without_end_is_refused() -> None:
    """A stream larger than the bound is a BrokenReply, comments counted."""
    chat = ChatStream(largest_bytes=1000)
    for _ in range(125):
        chat.feed(b": ping\n\n", 0.0)
    with pytest.raises(BrokenReply, match="larger than 1000 bytes"):
        chat.feed(b": ping\n\n", 0.0)


def test_the_first_token_is_timed_by_the_first_text() -> None:
    """`first_token_s` is when text came first; the role, an empty piece and another choice's text do not count."""
    chat = ChatStream()
    other = chunk(choices=[{"index": 1, "delta": {"content": "no"}}])
    for moment_s, one in enumerate([FIRST, other, *GOOD[1:]]):
        chat.feed(stream_of([one], done=False), float(moment_s))
    assert chat.first_token_s == 2.0


class Body:
    """The body of an answer: pieces that come so many seconds after one another."""

    def __init__(self, clock: VirtualClock, pieces: list[bytes], gaps_s: list[float]) -> None:
        self.clock = clock
        self.pieces = pieces
        self.gaps_s = gaps_s
        self.closed = False

    async def stream(self) -> AsyncIterator[bytes]:
        try:
            for piece, gap_s in zip(self.pieces, self.gaps_s, strict=True):
                await self.clock.sleep(gap_s)
                yield piece
        finally:
            self.closed = True


def test_a_slow_stream_is_read_and_timed() -> None:
    """A stream may take longer than `stall_s` in all, as long as no silence does; it is closed at its end."""
    clock = VirtualClock()
    body = Body(clock, [stream_of([one], done=False) for one in GOOD] + [b"data: [DONE]\n\n"], [1.0] * 6)
    chat = ChatStream()
    assert clock.run(read_stream(body.stream(), clock, 1.5, chat)) == REPLY
    assert (chat.first_token_s, clock.monotonic_s(), body.closed) == (2.0, 6.0, True)


@pytest.mark.parametrize("gaps_s", [[9.0, 0.0], [0.0, 9.0]])
def test_a_stalled_stream_is_cut(gaps_s: list[float]) -> None:
    """Silence of more than `stall_s`, before the first piece or after one, is TimedOut then, and closes the body."""
    clock = VirtualClock()
    body = Body(clock, [stream_of(GOOD[:2], done=False), stream_of(GOOD[2:])], gaps_s)
    with pytest.raises(TimedOut, match="stalled"):
        clock.run(read_stream(body.stream(), clock, 1.5, ChatStream()))
    assert body.closed
    assert clock.monotonic_s() == pytest.approx(1.5, abs=1e-3)


def test_without_the_bound_on_silence_a_stalled_stream_is_waited_for() -> None:
    """The sibling: with an endless `stall_s` the same stream takes its nine seconds."""
    clock = VirtualClock()
    body = Body(clock, [stream_of(GOOD[:2], done=False), stream_of(GOOD[2:])], [0.0, 9.0])
    assert clock.run(read_stream(body.stream(), clock, 1e9, ChatStream())) == REPLY
    assert clock.monotonic_s() == pytest.approx(9.0, abs=1e-3)


def test_a_stream_that_ends_early_is_refused() -> None:
    """The end of the body before the end of the stream is a BrokenReply."""
    clock = VirtualClock()
    body = Body(clock, [stream_of(GOOD, done=False)], [0.0])
    with pytest.raises(BrokenReply, match="cut"):
        clock.run(read_stream(body.stream(), clock, 1.5, ChatStream()))


def test_cancelling_the_reader_closes_the_body() -> None:
    """A reader that is cancelled leaves no open connection."""
    clock = VirtualClock()
    body = Body(clock, [b"", b""], [0.0, 1e6])

    async def main() -> None:
        task = asyncio.create_task(read_stream(body.stream(), clock, 1e9, ChatStream()))
        await clock.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    clock.run(main())
    assert body.closed


PING = b": ping\n\n"


def test_comments_do_not_keep_a_stream_alive() -> None:
    """After the first chunk they are no sign of life: the stream is cut `stall_s` after its last chunk."""
    clock = VirtualClock()
    body = Body(clock, [stream_of(GOOD[:2], done=False), *[PING] * 40], [1.0, *[15.0] * 40])
    with pytest.raises(TimedOut, match="stalled"):
        clock.run(read_stream(body.stream(), clock, 20.0, ChatStream()))
    assert body.closed
    assert clock.monotonic_s() == pytest.approx(21.0, abs=1e-3)


class Trusting:
    """A reader that does not say what are chunks."""

    first_token_s: float | None = None

    def __init__(self) -> None:
        self.chat = ChatStream()

    def feed(self, chunk: bytes, now_s: float) -> bool:
        return self.chat.feed(chunk, now_s)

    def reply(self) -> Reply:
        return self.chat.reply()


def test_without_the_count_of_chunks_comments_would_keep_it_alive() -> None:
    """The sibling: where every piece is taken for a chunk, the same stream lasts as long as its comments."""
    clock = VirtualClock()
    body = Body(clock, [stream_of(GOOD[:2], done=False), *[PING] * 40], [1.0, *[15.0] * 40])
    with pytest.raises(BrokenReply, match="cut"):
        clock.run(read_stream(body.stream(), clock, 20.0, Trusting()))
    assert clock.monotonic_s() == pytest.approx(601.0, abs=1e-3)


def test_comments_keep_alive_what_has_not_begun() -> None:
    """A server may send them to those who wait in its queue, for longer than `stall_s` in all."""
    clock = VirtualClock()
    body = Body(clock, [*[PING] * 5, stream_of(GOOD)], [15.0] * 6)
    assert clock.run(read_stream(body.stream(), clock, 20.0, ChatStream())) == REPLY
    assert clock.monotonic_s() == pytest.approx(90.0, abs=1e-3)


class Gaps:
    """A watch that keeps what it is told."""

    def __init__(self) -> None:
        self.after_s: list[float] = []
        self.stalls = 0

    def on_chunk(self, after_s: float) -> None:
        self.after_s.append(after_s)

    def on_stall(self) -> None:
        self.stalls += 1


def test_chunks_are_events_and_not_what_the_network_gives() -> None:
    """Several events of one piece are several chunks, one of several pieces is one; comments and [DONE] are none."""
    clock, watch, chat = VirtualClock(), Gaps(), ChatStream()
    second = stream_of(GOOD[1:2], done=False)
    pieces = [PING, stream_of(GOOD[:1], done=False), second[:9], second[9:], PING, stream_of(GOOD[2:])]
    body = Body(clock, pieces, [1.0] * 6)
    assert clock.run(read_stream(body.stream(), clock, 20.0, chat, watch)) == REPLY
    assert watch.after_s == pytest.approx([2.0, 2.0, 0.0, 0.0])
    assert (chat.chunks, chat.first_chunk_s, chat.first_token_s) == (5, 2.0, 4.0)
    assert chat.size == sum(map(len, pieces))


def settings_of(**over: Any) -> ModelSettings:
    base = {"role": "answer", "endpoints": (Endpoint("http://one/v1"),), "model": "m", "stream": StreamSettings()}
    return ModelSettings(**{**base, **over})


def asked(*scripts: Scripted, **over: Any) -> tuple[Outcome, Client, FakeTransport]:
    """One call over a transport with these scripts."""
    clock = VirtualClock()
    transport = FakeTransport(clock, scripts)
    client = Client(settings_of(**over), clock, transport)
    call = Call("e-1", Chat((Message("user", "Hi"),)), clock.now_ms() + 60_000)
    return clock.run(client.call(call)), client, transport


def values_of(client: Client, instrument: names.Instrument) -> list[tuple[int, float]]:
    """How many values a histogram has, and their sum."""
    found = client.telemetry.snapshot().histograms
    return [(value.count, value.sum) for series, value in found.items() if series.name == instrument.name]


def test_a_streamed_call_reports_sizes_and_chunks() -> None:
    """Of a stream the body that was sent, the bytes that came, the first chunk and the others are counted, each once."""
    stream = stream_of(GOOD)
    outcome, client, transport = asked(Scripted(body=stream, after_s=0.5))
    assert outcome.reply is not None
    assert values_of(client, names.REQUEST_SIZE) == [(1, len(transport.sent[0].body))]
    assert values_of(client, names.RESPONSE_SIZE) == [(1, len(stream))]
    assert values_of(client, names.TIME_TO_FIRST_CHUNK) == [(1, pytest.approx(0.5))]
    assert values_of(client, names.TIME_PER_OUTPUT_CHUNK) == [(4, pytest.approx(0.0, abs=1e-6))]
    assert outcome.reply.first_token_ms == pytest.approx(500.0)


def test_a_stream_that_is_refused_reports_its_sizes() -> None:
    """As an answer that was not to be a stream does."""
    _, client, _ = asked(answered(400, b"no streams here"))
    assert values_of(client, names.RESPONSE_SIZE) == [(1, 15)]


def test_an_error_in_a_stream_that_is_permanent_is_not_asked_again() -> None:
    """As it is not outside of a stream; one that passes is."""
    error = b'data: {"error": {"message": "too long", "type": "invalid_request_error", "code": 400}}\n\n'
    outcome, _, _ = asked(Scripted(body=error), Scripted(body=stream_of(GOOD)))
    assert (outcome.error_type, outcome.attempts) == ("refused", 1)
    busy = b'data: {"error": {"message": "busy", "type": "server_error"}}\n\n'
    outcome, _, _ = asked(Scripted(body=busy), Scripted(body=stream_of(GOOD)), retry=RetryPolicy(base_s=0.01))
    assert (outcome.reply is not None, outcome.attempts) == (True, 2)
