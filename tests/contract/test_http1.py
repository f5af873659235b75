"""What a server may send by RFC 9112, and what it may not, on real sockets: the same for both transports, of which one is our own."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any
from unittest.mock import Mock

import pytest

from tests.contract.link_double import LinkDouble
from transforms.errors import BrokenReply, TimedOut, Unreachable
from transforms.remote import http1_transport, loop
from transforms.remote.http1 import Connection
from transforms.remote.http1_transport import Http1Transport
from transforms.remote.transport import AiohttpTransport, NotConnected

Read = asyncio.StreamReader
Write = asyncio.StreamWriter
Script = Callable[["Server", Read, Write], Awaitable[None]]


class Server:
    """Does with each connection what its script says, and remembers what came."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.ended = 0
        self.changed = asyncio.Condition()
        self.heads: list[str] = []
        self.bodies: list[bytes] = []
        self.url = ""

    async def request(self, read: Read) -> bool:
        """Reads a request; returns whether there was one."""
        try:
            head = (await read.readuntil(b"\r\n\r\n")).decode()
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        length = next((line for line in head.lower().split("\r\n") if line.startswith("content-length:")), ":0")
        self.bodies.append(await read.readexactly(int(length.partition(":")[2])))
        self.heads.append(head)
        async with self.changed:
            self.changed.notify_all()
        return True

    async def has_read(self, count: int) -> None:
        """Waits until it has read so many requests."""
        async with asyncio.timeout(20.0), self.changed:
            await self.changed.wait_for(lambda: len(self.heads) >= count)

    async def ends(self, count: int) -> None:
        """Waits until so many connections have ended."""
        async with asyncio.timeout(20.0), self.changed:
            await self.changed.wait_for(lambda: self.ended >= count)

    async def handle(self, read: Read, write: Write) -> None:
        """One connection."""
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._script(self, read, write)
        write.close()
        async with self.changed:
            self.ended += 1
            self.changed.notify_all()


@contextlib.asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    """A server with this script."""
    server = Server(script)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1/chat?a=b"
    try:
        yield server
    finally:
        listening.close()


def answers(*pieces: bytes, ends: bool = False) -> Script:
    """Answers each request with these bytes, piece by piece; with `ends` the connection ends behind the first."""

    async def script(server: Server, read: Read, write: Write) -> None:
        while await server.request(read):
            for piece in pieces:
                write.write(piece)
                await write.drain()
                # Lets it travel alone.
                await asyncio.sleep(0.001)
            if ends:
                return

    return script


def sized(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    """An answer with a length."""
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


Transport = Http1Transport | AiohttpTransport
KINDS = {"own": Http1Transport, "aiohttp": AiohttpTransport}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Callable[..., Transport]:
    """Makes a transport."""
    made: Callable[..., Transport] = KINDS[request.param]
    return made


def run(main: Coroutine[Any, Any, Any]) -> Any:
    return loop.run(main).result(60.0)


def ask(make: Callable[..., Transport], script: Script, times: int = 1, **over: Any) -> tuple[Server, list[Any]]:
    """Posts so often, one after the other; returns the server, and the answers or errors."""

    async def main() -> tuple[Server, list[Any]]:
        transport = make(**over)
        async with serving(script) as server:
            found: list[Any] = []
            for number in range(times):
                try:
                    headers = {"Content-Type": "text/plain", "X-Number": str(number)}
                    found.append(await transport.post(server.url, b"question", headers, 10.0))
                except Exception as error:  # noqa: BLE001 - the tests say which
                    found.append(error)
            await transport.close()
            return server, found

    result: tuple[Server, list[Any]] = run(main())
    return result


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nX-A: 2\r\n\r\n3;x=y\r\nabc\r\n4\r\ndefg\r\n0\r\nX-A: 3\r\n\r\n"
WHOLE = {
    "sized": [sized(b"abcdefg", "X-A: 1", "x-a: 2")],
    "chunked": [CHUNKED],
    "byte by byte": [CHUNKED[at : at + 1] for at in range(len(CHUNKED))],
    "interim": [b"HTTP/1.1 102 Processing\r\nX-A: 9\r\n\r\n", sized(b"abcdefg", "X-A: 1", "X-A: 2")],
    "line feeds alone": [b"HTTP/1.1 200 OK\nX-A: 1\nX-A: 2\nContent-Length: 7\n\nabcdefg"],
    "spaces behind sizes": [CHUNKED.replace(b"4\r\n", b"4  \r\n")],
    "interim at once": [b"HTTP/1.1 103 Early Hints\r\nX-A: 9\r\n\r\n" + sized(b"abcdefg", "X-A: 1", "X-A: 2")],
}


@pytest.mark.parametrize("form", WHOLE)
def test_an_answer_is_read_whole_and_its_connection_used_again(make: Callable[..., Transport], form: str) -> None:
    """Whatever its framing and however it is cut up; a header that comes twice keeps both values."""
    server, found = ask(make, answers(*WHOLE[form]), times=3)
    assert [(status, body) for status, _, body in found] == [(200, b"abcdefg")] * 3
    assert server.connections == 1
    assert server.bodies == [b"question"] * 3
    own = isinstance(make(), Http1Transport)
    first = dict(found[0][1])
    assert not own or first["x-a"] == "1, 2", "headers behind the body say nothing"


ENDS = {
    "no length": [b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nabc", b"defg"],
    "old": [b"HTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\nabcdefg"],
    "says so": [sized(b"abcdefg", "Connection: close")],
}


@pytest.mark.parametrize("form", ENDS)
def test_an_answer_that_ends_its_connection_is_whole(make: Callable[..., Transport], form: str) -> None:
    """The next request has a connection of its own."""
    server, found = ask(make, answers(*ENDS[form], ends=True), times=2)
    assert [(status, body) for status, _, body in found] == [(200, b"abcdefg")] * 2
    assert server.connections == 2


def test_an_answer_may_be_empty(make: Callable[..., Transport]) -> None:
    """One without content has no length either, and the connection goes on."""
    server, found = ask(make, answers(b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"), times=2)
    assert [(status, body) for status, _, body in found] == [(204, b"")] * 2
    assert server.connections == 1


BROKEN = {
    "no answer": ([], Unreachable),
    "cut in the headers": ([b"HTTP/1.1 200 OK\r\nContent-Le"], Unreachable),
    "cut in the body": ([sized(b"abcdefg")[:-2]], Unreachable),
    "cut in a chunk": ([CHUNKED[:-20]], Unreachable),
    "cut before the last chunk": ([CHUNKED.partition(b"0\r\n")[0]], Unreachable),
    "not HTTP": ([b"* OK IMAP4rev1 ready\r\n"], BrokenReply),
    "two lengths": ([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"], BrokenReply),
    "a chunk without a size": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc\r\n0\r\n\r\n"],
        BrokenReply,
    ),
    "one endless header": ([b"HTTP/1.1 200 OK\r\nX: ", *[b"y" * 8_000] * 40], BrokenReply),
}


@pytest.mark.parametrize("form", BROKEN)
def test_what_is_no_answer_is_an_error(make: Callable[..., Transport], form: str) -> None:
    """A half answer is never taken for a whole one; its error says whether the connection broke, or it is not HTTP."""
    pieces, kind = BROKEN[form]
    _, (error,) = ask(make, answers(*pieces, ends=True))
    assert type(error) is kind, repr(error)


def test_headers_without_end_are_an_error() -> None:
    """However short each of them is: they do not fill the memory."""
    headers = [b"X-%d: %s\r\n" % (number, b"y" * 8_000) for number in range(40)]
    _, (error,) = ask(Http1Transport, answers(b"HTTP/1.1 200 OK\r\n", *headers))
    assert type(error) is BrokenReply, repr(error)


def test_bytes_that_nobody_asked_for_end_a_connection(make: Callable[..., Transport]) -> None:
    """A second answer to one request is not given to the next one."""
    server, found = ask(make, answers(sized(b"first") + sized(b"smuggled")), times=2)
    bodies = [one[2] for one in found if isinstance(one, tuple)]
    assert set(bodies) == {b"first"}, found
    if make is Http1Transport:
        assert len(bodies) == server.connections == 2


def deflated(data: bytes, bits: int) -> bytes:
    """Deflate, with zlib's header or without."""
    packer = zlib.compressobj(wbits=bits)
    return packer.compress(data) + packer.flush()


LONG = b"a reply of some length " * 500
PACKED = {
    "gzip": ("gzip", gzip.compress(LONG)),
    "deflate": ("deflate", deflated(LONG, zlib.MAX_WBITS)),
    "deflate without its header": ("deflate", deflated(LONG, -zlib.MAX_WBITS)),
    "two files of gzip": ("gzip", gzip.compress(LONG[:100]) + gzip.compress(LONG[100:])),
    "none": ("identity", LONG),
}


async def streamed(transport: Transport, url: str) -> bytes:
    """The body of an answer that is read as a stream."""
    async with transport.stream(url, b"question", {}, 10.0) as (_, _, pieces):
        return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("form", PACKED)
def test_packed_answers_are_unpacked(make: Callable[..., Transport], form: str) -> None:
    """Whole ones and streams, whatever the pieces."""
    coding, body = PACKED[form]
    whole = sized(body, f"Content-Encoding: {coding}")
    pieces = [whole[at : at + 50] for at in range(0, len(whole), 50)]

    async def main() -> bytes:
        transport = make()
        async with serving(answers(*pieces)) as server:
            found = await streamed(transport, server.url)
            await transport.close()
            return found

    _, ((_, _, unpacked),) = ask(make, answers(*pieces))
    assert unpacked == LONG
    assert run(main()) == LONG


NOT_PACKED = {
    "not gzip": (sized(b"abcdefghijklmnopqrst", "Content-Encoding: gzip"), BrokenReply),
    "cut": (sized(gzip.compress(LONG)[:-9], "Content-Encoding: gzip"), Unreachable),
    "a bomb": (sized(gzip.compress(bytes(50_000_000)), "Content-Encoding: gzip"), BrokenReply),
    "not asked for": (sized(b"abc", "Content-Encoding: compress"), BrokenReply),
}


@pytest.mark.parametrize("form", NOT_PACKED)
def test_what_cannot_be_unpacked_is_an_error(form: str) -> None:
    """A body that is not what it says is no answer, nor is one that would fill the memory, nor half of one."""
    raw, kind = NOT_PACKED[form]

    async def main() -> None:
        transport = Http1Transport()
        async with serving(answers(raw)) as server:
            with pytest.raises(kind):
                await streamed(transport, server.url)
            await transport.close()

    _, (error,) = ask(Http1Transport, answers(raw))
    assert type(error) is kind, repr(error)
    run(main())


async def silence(server: Server, read: Read, write: Write) -> None:
    """Reads, and never answers."""
    while await server.request(read):
        pass


def test_the_end_of_time_closes_the_connection(make: Callable[..., Transport]) -> None:
    """A server that never answers sees the connection end; so it does where the request is cancelled."""

    async def main() -> None:
        transport = make()
        async with serving(silence) as server:
            with pytest.raises(TimedOut):
                await transport.post(server.url, b"question", {}, 0.05)
            await server.ends(1)
            request = asyncio.create_task(transport.post(server.url, b"question", {}, 20.0))
            await server.has_read(2)
            request.cancel()
            await server.ends(2)
            await transport.close()

    run(main())


def test_a_connection_that_the_server_closed_is_not_used_again(make: Callable[..., Transport]) -> None:
    """A server that closes what is idle costs no request."""

    async def once(server: Server, read: Read, write: Write) -> None:
        await server.request(read)
        write.write(sized(b"abc"))
        write.write_eof()
        # Nothing but the end of the other side comes, once that has seen the end of this one.
        await read.read()

    async def main() -> None:
        transport = make()
        async with serving(once) as server:
            for count in (1, 2, 3):
                await transport.post(server.url, b"question", {}, 10.0)
                await server.ends(count)
            assert server.connections == 3
            await transport.close()

    run(main())


def test_what_is_idle_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection is kept for a while and no longer."""
    monkeypatch.setattr(http1_transport, "KEEP_S", 0.05)

    async def main() -> None:
        transport = Http1Transport()
        async with serving(answers(sized(b"abc"))) as server:
            await asyncio.gather(*(transport.post(server.url, b"question", {}, 10.0) for _ in range(3)))
            assert server.connections == 3
            await server.ends(3)
            assert not transport._open
            assert not transport._idle
            await transport.close()

    run(main())


def test_a_stream_holds_its_server_back() -> None:
    """What nobody reads is not fetched without end, and comes when it is read; leaving the stream closes the connection."""
    size, sent = 60_000_000, 0

    async def long(server: Server, read: Read, write: Write) -> None:
        nonlocal sent
        while await server.request(read):
            write.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            sent = 0
            while sent < size:
                write.write(bytes(100_000))
                await write.drain()
                sent += 100_000

    async def main() -> None:
        transport = Http1Transport(largest_reply_bytes=size)
        async with serving(long) as server:
            async with transport.stream(server.url, b"question", {}, 30.0) as (status, _, pieces):
                assert status == 200
                (connection,) = transport._open
                while not connection._is_paused:  # noqa: ASYNC110 - the connection tells nobody
                    await asyncio.sleep(0)
                assert connection._held_bytes < 1_000_000
                assert sent < size
                assert sum([len(piece) async for piece in pieces]) == size
            async with transport.stream(server.url, b"question", {}, 30.0) as (_, _, pieces):
                assert await anext(pieces)
            await server.ends(1)
            await transport.close()

    run(main())


def test_a_stream_that_is_read_to_its_end_leaves_its_connection() -> None:
    """The next request goes over the same one."""

    async def main() -> None:
        transport = Http1Transport()
        async with serving(answers(CHUNKED)) as server:
            for _ in range(3):
                assert await streamed(transport, server.url) == b"abcdefg"
            assert server.connections == 1
            await transport.close()

    run(main())


class LateEnd:
    """Answers each request with a chunk, and when it is told so with `rest`, which ends the answer."""

    def __init__(self, rest: bytes = b"0\r\n\r\n") -> None:
        self.rest = rest
        self.told = asyncio.Event()

    async def __call__(self, server: Server, read: Read, write: Write) -> None:
        while await server.request(read):
            write.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
            await write.drain()
            await self.told.wait()
            self.told.clear()
            write.write(self.rest)
            await write.drain()


async def taste(transport: Transport, url: str) -> None:
    """Reads the first of a stream, and leaves it in good order."""
    async with transport.stream(url, b"question", {}, 10.0) as (_, _, pieces):
        assert await anext(pieces) == b"abc"


def is_reading_on(transport: Transport) -> bool:
    assert isinstance(transport, Http1Transport)
    kept = {connection for idle in transport._idle.values() for connection in idle}
    return bool(transport._open - kept)


async def has_read_on(transport: Transport) -> None:
    """Waits until no connection is read on."""
    async with asyncio.timeout(20.0):
        while is_reading_on(transport):  # noqa: ASYNC110 - the connection tells nobody
            await asyncio.sleep(0.001)


def bound_reading_on(monkeypatch: pytest.MonkeyPatch, **bounds: float) -> None:
    for name, value in bounds.items():
        monkeypatch.setattr(http1_transport, name, value)


def test_a_stream_left_before_its_end_leaves_its_connection() -> None:
    """Nobody waits for the end of the answer, and when it comes the connection is used again."""

    async def main() -> None:
        transport, script = Http1Transport(), LateEnd()
        async with serving(script) as server:
            for _ in range(10):
                await taste(transport, server.url)
                assert is_reading_on(transport)
                script.told.set()
                await has_read_on(transport)
            assert server.connections == 1
            await transport.close()

    run(main())


def test_without_reading_on_each_stream_has_its_own_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sibling: where the end is waited for no time at all, the connection is closed."""
    bound_reading_on(monkeypatch, READ_ON_S=0.0)

    async def main() -> None:
        transport, script = Http1Transport(), LateEnd()
        async with serving(script) as server:
            for count in (1, 2, 3):
                await taste(transport, server.url)
                await has_read_on(transport)
                script.told.set()
                await server.ends(count)
            assert server.connections == 3
            await transport.close()

    run(main())


RESTS = {
    "too long": b"fffff\r\n" + bytes(0xFFFFF) + b"\r\n0\r\n\r\n",
    "not HTTP": b"xyz\r\n",
    "more than was asked for": b"0\r\n\r\n" + sized(b"smuggled"),
}


@pytest.mark.parametrize("form", RESTS)
def test_a_rest_that_is_none_ends_the_connection(form: str) -> None:
    """What is read on may not be longer than its bound, must be an answer's rest, and has nothing behind it."""

    async def main() -> None:
        transport, script = Http1Transport(), LateEnd(RESTS[form])
        async with serving(script) as server:
            await taste(transport, server.url)
            script.told.set()
            await server.ends(1) if form == "too long" else await has_read_on(transport)
            assert not transport._open or not any(connection.is_clean for connection in transport._open)
            await taste(transport, server.url)
            assert server.connections == 2
            await transport.close()
            script.told.set()
            await server.ends(2)

    run(main())


def test_a_stream_left_with_an_error_ends_its_connection(make: Callable[..., Transport]) -> None:
    """What was read is not as it should be: nothing more of it is wanted."""

    async def main() -> None:
        transport, script = make(), LateEnd()

        async def fail(url: str) -> None:
            async with transport.stream(url, b"question", {}, 10.0) as (_, _, pieces):
                await anext(pieces)
                raise KeyError

        async with serving(script) as server:
            with pytest.raises(KeyError):
                await fail(server.url)
            script.told.set()
            await server.ends(1)
            await transport.close()

    run(main())


def test_with_aiohttp_a_stream_left_before_its_end_ends_its_connection() -> None:
    """What a server sends behind the answer that was left is never taken for the next one."""

    async def main() -> None:
        transport, script = AiohttpTransport(), LateEnd(b"0\r\n\r\n" + sized(b"smuggled"))
        async with serving(script) as server:
            for count in (1, 2):
                await taste(transport, server.url)
                script.told.set()
                await server.ends(count)
            await transport.close()

    run(main())


def test_closing_ends_what_is_read_on() -> None:
    """No task, timer or connection is left behind."""

    async def main() -> None:
        transport, script = Http1Transport(), LateEnd()
        async with serving(script) as server:
            await taste(transport, server.url)
            assert is_reading_on(transport)
            left = list(transport._open)
            await transport.close()
            script.told.set()
            await server.ends(1)
            assert not is_reading_on(transport)
            assert all(one._expiry is None for one in left)

    run(main())


def test_a_connection_that_reads_nothing_is_not_used_again() -> None:
    """One that was held back because nobody read the answer would be deaf to the next one."""

    async def main() -> None:
        connection, network = Connection(asyncio.get_running_loop()), Mock()
        network.is_closing.return_value, network.get_write_buffer_size.return_value = False, 0
        connection.connection_made(network)
        for size, is_clean in ((1_000, True), (500_000, False)):
            connection.send(b"", b"")
            connection.data_received(sized(bytes(size)))
            left = Mock()
            connection.read_on(1.0, 1_000_000, left)
            left.assert_called_once_with()
            assert connection.is_clean is is_clean

    run(main())


def test_a_link_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """The double of a link ends what it carries, and its loop with it: asyncio has nothing to complain of."""

    async def main() -> None:
        transport = Http1Transport()
        async with serving(silence) as server:
            link = LinkDouble(server.url).__enter__()
            request = asyncio.create_task(transport.post(link.url, b"question", {}, 20.0))
            await server.has_read(1)
            carried = asyncio.all_tasks(link._loop)
            assert carried
            await asyncio.to_thread(link.__exit__)
            assert all(task.done() for task in carried)
            assert link._loop.is_closed()
            with pytest.raises(Unreachable):
                await request
            await transport.close()

    run(main())
    assert not caplog.records


@pytest.mark.parametrize("form", ["no answer", "cut in the body", "cut in a chunk", "not HTTP"])
def test_a_stream_that_is_no_answer_is_an_error(make: Callable[..., Transport], form: str) -> None:
    """As a whole answer is."""
    pieces, kind = BROKEN[form]

    async def main() -> None:
        transport = make()
        async with serving(answers(*pieces, ends=True)) as server:
            with pytest.raises(kind):
                await streamed(transport, server.url)
            await transport.close()

    run(main())


def test_a_stream_ends_in_time(make: Callable[..., Transport]) -> None:
    """Also while its headers have come and nothing more does."""

    async def begun(server: Server, read: Read, write: Write) -> None:
        await server.request(read)
        write.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        await read.read()

    async def main() -> None:
        transport = make()
        async with serving(begun) as server:
            with pytest.raises(TimedOut):
                async with transport.stream(server.url, b"question", {}, 0.1) as (_, _, pieces):
                    _ = [piece async for piece in pieces]
            await server.ends(1)
            await transport.close()

    run(main())


def test_an_answer_before_the_question_is_read_is_an_answer() -> None:
    """A server may refuse a large body early; what is left of it does not run into the next request."""

    async def hasty(server: Server, read: Read, write: Write) -> None:
        await read.readuntil(b"\r\n\r\n")
        write.write(sized(b"too much", status="413 Content Too Large"))
        await write.drain()
        await server.request(read)

    async def main() -> None:
        transport = Http1Transport()
        async with serving(hasty) as server:
            for _ in range(2):
                status, _, body = await transport.post(server.url, bytes(30_000_000), {}, 10.0)
                assert (status, body) == (413, b"too much")
            assert server.connections == 2
            await transport.close()

    run(main())


def test_a_request_is_written_as_it_should_be(make: Callable[..., Transport]) -> None:
    """Method, path and host; the names that are given, once, and no more than is needed beside them."""

    async def main() -> list[str]:
        transport = make()
        async with serving(answers(sized(b"abc"))) as server:
            await transport.post(
                server.url, "größe".encode(), {"Content-Type": "text/plain", "user-agent": "mine"}, 10.0
            )
            await transport.get(server.url, {}, 10.0)
            await transport.close()
            return [server.url, *server.heads]

    url, posted, asked = run(main())
    authority = url.removeprefix("http://").partition("/")[0]
    first, *headers = posted.rstrip().split("\r\n")
    assert first == "POST /v1/chat?a=b HTTP/1.1"
    found = {name.lower(): value for name, _, value in (line.partition(": ") for line in headers)}
    assert len(found) == len(headers)
    assert found.pop("accept-encoding").startswith("gzip, deflate")
    assert found == {
        "host": authority,
        "accept": "*/*",
        "user-agent": "mine",
        "content-type": "text/plain",
        "content-length": "7",
    }
    assert asked.startswith("GET /v1/chat?a=b HTTP/1.1\r\n")
    assert "content-length" not in asked.lower()
    assert "User-Agent: farcall" in asked


@pytest.mark.parametrize("value", ["a\r\nX-Other: b", "a\nb", "a\rb", "a\0b", "a\x1bb"])
def test_a_header_cannot_begin_another(make: Callable[..., Transport], value: str) -> None:
    """A value with a line break, or another control character, is refused, and nothing is sent."""

    async def main() -> None:
        transport = make()
        async with serving(silence) as server:
            with pytest.raises(ValueError, match="control character"):
                await transport.post(server.url, b"question", {"X-A": value}, 10.0)
            assert server.heads == []
            await transport.close()

    run(main())


def test_an_idle_connection_keeps_nothing_of_its_answer() -> None:
    """However long that was: there may be thousands."""

    async def main() -> None:
        transport = Http1Transport()
        async with serving(answers(sized(b"abc"))) as server:
            await transport.post(server.url, b"question", {}, 10.0)
            (connection,) = transport._open
            assert (connection._pieces, connection._parser) == ([], None)
            await transport.close()

    run(main())


def test_the_next_address_of_a_name_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with an address where nobody listens is reached by its others; one without any is told of, and asked for again."""
    asked: list[str] = []

    async def main() -> None:
        async with serving(answers(sized(b"abc", "Connection: close"))) as server:
            port = int(server.url.split(":")[2].partition("/")[0])
            url = f"http://some.name:{port}/"
            live = await http1_transport._look_up("127.0.0.1", port)
            dead = await http1_transport._look_up("127.0.0.1", 9)

            async def look_up(host: str, _port: int) -> list[Any]:
                asked.append(host)
                if len(asked) == 1:
                    raise OSError("no such name")
                return live + dead

            monkeypatch.setattr(http1_transport, "_look_up", look_up)
            transport = Http1Transport()
            with pytest.raises(NotConnected, match="no such name"):
                await transport.post(url, b"question", {}, 10.0)
            for _ in range(4):
                assert (await transport.post(url, b"question", {}, 10.0))[0] == 200
            assert asked == ["some.name"] * 2
            assert server.heads[0].count(f"Host: some.name:{port}") == 1
            await transport.close()

    run(main())


def test_closing_ends_what_is_under_way() -> None:
    """Requests that wait for an answer fail, and the server sees their connections end."""

    async def main() -> None:
        transport = Http1Transport()
        async with serving(silence) as server:
            request = asyncio.create_task(transport.post(server.url, b"question", {}, 20.0))
            await server.has_read(1)
            await transport.close()
            with pytest.raises(Unreachable):
                await request
            await server.ends(1)

    run(main())
