"""The wire protocol `http-json` and its templates: what is sent, what is read out of an answer, and what is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from transforms.errors import BrokenReply, Refused, SettingsError
from transforms.remote.http_json import HttpJson
from transforms.remote.protocols import ProtocolSettings, make_protocol
from transforms.remote.questions import Chat, Message, Reply, Tensor, Tensors, Text, Value
from transforms.remote.templates import Expression, compile_template

CHAT = Chat((Message("system", "Be brief."), Message("user", "Grüße")), schema={"type": "object"}, params={"top": 2})


def made(**options: Any) -> HttpJson:
    given = {"request": {"in": "{{text}}"}, "response": {"text": "out"}, **options}
    return HttpJson(ProtocolSettings(model="m", params={"top": 1, "heat": 0}, options=given))


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        ("plain } } text", "plain } } text"),
        ("{{a}}", 1),
        ("{{ b.c }}", [1, None]),
        ("{{missing}}", None),
        ("a is {{a}}, s is {{s}}.", "a is 1, s is Grüße."),
        ("{{b.c}}{{a}}", "[1, null]1"),
        ("{{ {x: {y: a}} }}", {"x": {"y": 1}}),
        ("{{{x: {y: a}}}}", {"x": {"y": 1}}),
        ("{{'}}'}} and {{a}}", "}} and 1"),
        ({"k": ["{{a}}", 2.5, True, None], "{{a}}": {}}, {"k": [1, 2.5, True, None], "{{a}}": {}}),
        ("", ""),
    ],
)
def test_a_template_is_filled(template: Any, filled: Any) -> None:
    """A text that is one expression becomes its value, in other texts values are put in, all else stays."""
    assert compile_template(template)({"a": 1, "b": {"c": [1, None]}, "s": "Grüße"}) == filled


@pytest.mark.parametrize("template", ["{{", "{{a", "{{}}", "{{a b}}", "x {{[}} y", {"k": ["{{a."]}])
def test_a_template_that_is_none_is_refused(template: Any) -> None:
    """An expression that is none, or is not closed, is an error of the settings."""
    with pytest.raises(SettingsError):
        compile_template(template)


@pytest.mark.parametrize(("template", "match"), [("x {{missing}}", "nothing"), ("{{length(a)}}", "length")])
def test_what_cannot_be_filled_in_is_an_error(template: Any, match: str) -> None:
    """Nothing is put into a text as `None`, and a function that cannot take its argument is no value."""
    with pytest.raises(ValueError, match=match):
        compile_template(template)({"a": 1})


@pytest.mark.parametrize("seed", range(50))
def test_values_go_through_a_template_unchanged(seed: int) -> None:
    """Whatever value an expression gives, it arrives as it is, and one in quotes is never an expression."""
    rng = random.Random(seed)

    def value(depth: int) -> Any:
        kinds: list[Any] = [None, True, rng.random(), rng.randint(-9, 9), "{{a}} " * rng.randint(0, 2)]
        if depth and rng.random() < 0.6:
            return [value(depth - 1) for _ in range(rng.randint(0, 3))]
        if depth and rng.random() < 0.5:
            return {str(key): value(depth - 1) for key in range(rng.randint(0, 3))}
        return rng.choice(kinds)

    data = value(4)
    assert compile_template({"k": ["{{v}}"]})({"v": data}) == {"k": [data]}


def test_a_chat_a_text_and_a_value_have_their_names() -> None:
    """A template finds the model, the params under those of the question, and what the question is made of."""
    chat = made(
        request={"m": "{{model}}", "p": "{{params}}", "q": "{{messages[?role=='user'].content}}", "s": "{{schema}}"}
    )
    assert json.loads(chat.request([CHAT]).body) == {
        "m": "m",
        "p": {"top": 2, "heat": 0},
        "q": ["Grüße"],
        "s": {"type": "object"},
    }
    assert made().request([Text("Grüße")]).body == '{"in":"Grüße"}'.encode()
    assert json.loads(made(request="{{value}}").request([Value({"a": [1]})]).body) == {"a": [1]}
    assert made(path="/score").request([Text("")]).path == "/score"
    assert chat.params(CHAT) == {"top": 2, "heat": 0}


@pytest.mark.parametrize(
    "question",
    [Tensors((Tensor("x", "BOOL", (1,), [True]),)), Value(float("nan")), Value({1, 2}), Value("\ud800")],
)
def test_a_question_without_a_form_is_refused(question: Any) -> None:
    """Tensors, numbers that are not finite and what JSON cannot write are refused, not sent as something else."""
    with pytest.raises(Refused):
        made(request="{{value}}").request([question])


def test_an_answer_is_read_by_expressions() -> None:
    """Text, value, finish reason, model and counts stand where the expressions say; what is absent is None."""
    response = {
        "text": "choices[0].text",
        "value": "scores",
        "finish_reason": "why",
        "model": "by",
        "prompt_tokens": "usage.in",
        "completion_tokens": "usage.out",
    }
    body = {"choices": [{"text": "Hi"}], "scores": [0.5], "why": "stop", "by": "m2", "usage": {"in": 3, "out": -1}}
    replies = made(response=response).replies([Text("a")], {}, json.dumps(body).encode())
    assert replies == (Reply("Hi", "stop", "m2", 3, None, [0.5]),)
    assert made(response={"value": "@"}).replies([Text("a")], {}, b"0") == (Reply("", value=0),)


@pytest.mark.parametrize(
    "body", [b"", b"{", b'"\xff"', b"[]", b"{}", b'{"out": null}', b'{"out": 3}', b'{"out": ["a"]}', b'{"Out": "a"}']
)
def test_an_answer_without_its_text_is_broken(body: bytes) -> None:
    """What is no JSON, or holds no text where it should, is no reply."""
    with pytest.raises(BrokenReply):
        made().replies([Text("a")], {}, body)


def test_a_function_that_cannot_take_the_answer_makes_it_broken() -> None:
    """An expression whose function meets another type is a broken reply, not a defect."""
    with pytest.raises(BrokenReply, match="sum"):
        made(response={"value": "sum(out)"}).replies([Text("a")], {}, b'{"out": "a"}')


def test_many_questions_share_a_request() -> None:
    """With `items` the template sees all questions, and the answer's items are theirs in order."""
    batched = made(
        request={"model": "{{model}}", "texts": "{{items[].text}}"},
        response={"value": "score", "prompt_tokens": "n"},
        items="results",
    )
    questions = [Text("a"), Text("b")]
    assert json.loads(batched.request(questions).body) == {"model": "m", "texts": ["a", "b"]}
    assert batched.most_items is None
    body = json.dumps({"results": [{"score": 1, "n": 2}, {"score": 0}]}).encode()
    assert batched.replies(questions, {}, body) == [Reply("", prompt_tokens=2, value=1), Reply("", value=0)]
    for broken in (b'{"results": [{"score": 1}]}', b'{"results": {"score": 1}}', b"{}"):
        with pytest.raises(BrokenReply, match="2 items"):
            batched.replies(questions, {}, broken)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "request"),
        ({"request": {}}, "response"),
        ({"request": {}, "response": {}}, "text or value"),
        ({"request": {}, "response": {"text": "a["}}, "JMESPath"),
        ({"request": {}, "response": {"txt": "a"}}, "txt"),
        ({"request": "{{", "response": {"text": "a"}}, "}}"),
        ({"request": {}, "response": {"text": "a"}, "items": "]"}, "JMESPath"),
        ({"request": {}, "response": {"text": "a"}, "path": "x"}, "slash"),
        ({"request": {}, "response": {"text": "a"}, "paht": "/x"}, "did you mean path"),
    ],
)
def test_options_that_are_wrong_are_refused_at_once(options: dict[str, Any], match: str) -> None:
    """Everything that can be known of the options is known before anything starts."""
    with pytest.raises(SettingsError, match=match):
        make_protocol("http-json", ProtocolSettings(model="m", options=options))


def test_a_stream_is_refused() -> None:
    """There are none."""
    with pytest.raises(SettingsError, match="stream"):
        make_protocol("http-json", ProtocolSettings(model="m", stream=True))


def test_replies_of_a_server_without_chance_may_be_kept() -> None:
    """`samples: false` says so to the cache."""
    assert made().samples
    assert not made(samples=False).samples


def test_an_expression_says_what_is_wrong_with_it() -> None:
    """The sentence names the expression."""
    with pytest.raises(SettingsError, match=r"a\[ is no JMESPath"):
        Expression("a[")
