"""The wire protocol `http-json`: any server that takes JSON by POST and answers JSON, described by expressions.

The option `request` is the body as a template (`templates`): values of JSON in which ``{{ … }}`` is a JMESPath expression over
``model`` (the name), ``params`` (those of the settings under those of the question) and, of a `Chat`, ``messages`` (each with
``role`` and ``content``) and ``schema``; of a `Text`, ``text``; of a `Value`, ``value``. The option `response` holds JMESPath
expressions over the body of the answer: ``text`` and ``value``, of which one at least is given, ``finish_reason``, ``model``,
``prompt_tokens`` and ``completion_tokens``.

With the option `items`, a JMESPath expression over the body that gives a list, a request holds many questions: the template then
finds them under ``items``, each with the names above, and the expressions of `response` are over one item of the answer's list,
whose first is the first question's.

Source: JMESPath's specification (jmespath.org). Defaults: no path but the base URL; replies count as drawn by chance (`samples`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from transforms.errors import BrokenReply, Refused, SettingsError
from transforms.remote.batcher import rough_tokens
from transforms.remote.bodies import decode, encode
from transforms.remote.protocols import ProtocolSettings, Request, read_options, refuse_stream
from transforms.remote.questions import Chat, Question, Reply, Text, Value
from transforms.remote.templates import Expression, compile_template

_bodies: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


class ResponseOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The option `response`: JMESPath expressions over the answer. One of `text` and `value` at least."""

    text: str | None = None
    value: str | None = None
    finish_reason: str | None = None
    model: str | None = None
    prompt_tokens: str | None = None
    completion_tokens: str | None = None


class HttpJsonOptions(msgspec.Struct, frozen=True):
    """The protocol's own options.

    `path`, under the base URL, begins with a slash; `request` is the template of the body; `items` is the expression of the list
    of an answer to many questions; with `samples` false the server is known to answer the same again, so that the cache may keep
    its replies.
    """

    request: Any
    response: ResponseOptions
    path: str = ""
    items: str | None = None
    samples: bool = True


class HttpJson:
    """The protocol for one model; see `WireProtocol`. It takes `Chat`, `Text` and `Value` questions.

    Raises:
        SettingsError: an option is missing, unknown or no expression, or a stream is asked for.
    """

    schemes = ("http", "https")
    probe_path: str | None = None

    def __init__(self, settings: ProtocolSettings) -> None:
        refuse_stream("http-json", settings)
        options = read_options(settings.options, HttpJsonOptions)
        if options.path and not options.path.startswith("/"):
            raise SettingsError(f"options: path is {options.path}; it must begin with a slash.")
        self._settings = settings
        self._path = options.path
        self._fill = compile_template(options.request)
        self._items = None if options.items is None else Expression(options.items)
        self._response = _expressions(options.response)
        self.most_items = 1 if self._items is None else None
        self.samples = options.samples

    def request(self, questions: Sequence[Question]) -> Request:
        """Return the request; see `WireProtocol.request`."""
        fields = [self._fields(question) for question in questions]
        common = {"model": self._settings.model, "params": dict(self._settings.params)}
        values = fields[0] if self._items is None else {**common, "items": fields}
        try:
            body = encode(self._fill(values))
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused(f"The request cannot be made: {error}.", 0) from None
        return Request(self._path, body, {}, rough_tokens(body.decode()))

    def replies(self, questions: Sequence[Question], headers: Mapping[str, str], body: bytes) -> Sequence[Reply]:
        """Return a reply to each question; see `WireProtocol.replies`."""
        answer = decode(_bodies, body)
        if self._items is None:
            return (self._reply(answer),)
        items = _evaluated(self._items, answer)
        if not isinstance(items, list) or len(items) != len(questions):
            found = f"{len(items)} of them" if isinstance(items, list) else "no list"
            raise BrokenReply(f"The answer must hold {len(questions)} items, and {self._items.text} gives {found}.")
        return [self._reply(item) for item in items]

    def reader(self) -> None:
        """Return None: there are no streams."""

    def params(self, question: Question) -> Mapping[str, Any]:
        """Return the params of the settings under those of the question."""
        own = question.params if isinstance(question, Chat) else {}
        return {**self._settings.params, **own} if own else self._settings.params

    def _fields(self, question: Question) -> dict[str, Any]:
        """What the template may name of a question."""
        fields: dict[str, Any] = {"model": self._settings.model, "params": dict(self.params(question))}
        if isinstance(question, Chat):
            messages = [{"role": message.role, "content": message.content} for message in question.messages]
            return {**fields, "messages": messages, "schema": question.schema}
        if isinstance(question, Text):
            return {**fields, "text": question.text}
        if isinstance(question, Value):
            return {**fields, "value": question.value}
        raise Refused(f"http-json takes chats, texts and values; a {type(question).__name__} it has not.", 0)

    def _reply(self, answer: Any) -> Reply:
        found = {name: _evaluated(expression, answer) for name, expression in self._response.items()}
        text, value = found.get("text"), found.get("value")
        if "text" in found and not isinstance(text, str):
            raise BrokenReply(f"The answer's text, at {self._response['text'].text}, is {_kind(text)}.")
        if "value" in found and value is None:
            raise BrokenReply(f"The answer has no value at {self._response['value'].text}.")
        return Reply(
            text or "",
            _text(found.get("finish_reason")),
            _text(found.get("model")),
            _count(found.get("prompt_tokens")),
            _count(found.get("completion_tokens")),
            value,
        )


def _expressions(options: ResponseOptions) -> dict[str, Expression]:
    given = {name: value for name, value in msgspec.structs.asdict(options).items() if value is not None}
    if not given.keys() & {"text", "value"}:
        raise SettingsError("options: response must say where text or value is found.")
    return {name: Expression(value) for name, value in given.items()}


def _evaluated(expression: Expression, answer: Any) -> Any:
    try:
        return expression(answer)
    except ValueError as error:
        raise BrokenReply(f"The answer is not as described: {error}.") from None


def _kind(value: Any) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
