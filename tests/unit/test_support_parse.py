"""What a support event must look like, and what becomes of each channel's form."""

from __future__ import annotations

import ast
import base64
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pipeline.cases.support.events import (
    KINDS,
    MAX_EVENT_BYTES,
    Attachment,
    SupportEvent,
    Turn,
    parse_event,
    read_id,
)
from pipeline.cases.support.mail import MAX_FIELD_CHARS, MAX_MULTIPARTS, MAX_PARTS, Mail, read_mail
from pipeline.cases.support.page import page_text
from pipeline.cases.support.quoting import without_history
from pipeline.cases.support.transcript import as_text, read_transcript
from pipeline.cases.support.wording import excerpt, is_blank
from transforms.errors import BadEvent
from transforms.records import SourceRecord

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "pipeline" / "cases" / "support"
SOURCES = [SUPPORT / name for name in ("events.py", "mail.py", "transcript.py")]
GOOD = {"id": "e-1", "channel": "chat", "customer_id": "CUST-1", "at": "2026-03-02T09:15:00+01:00", "text": "Hi there"}


def record(value: Any) -> SourceRecord:
    """A record of bytes as they are, or of anything else as JSON."""
    return SourceRecord(value=value if isinstance(value, bytes) else json.dumps(value).encode())


def without(name: str) -> dict[str, Any]:
    return {field: value for field, value in GOOD.items() if field != name}


def rejected(value: Any) -> BadEvent:
    with pytest.raises(BadEvent) as caught:
        parse_event(record(value))
    return caught.value


# ------------------------------------------------------------------------------------------------ the door


def test_a_chat_becomes_an_event() -> None:
    """A chat's fields, its text as it is, its time in Unix milliseconds and the record itself are in the event."""
    source = record({**GOOD, "text": "  Hi\n there ", "extra": [1, {"more": None}]})
    assert parse_event(source) == SupportEvent(
        id="e-1", channel="chat", customer_id="CUST-1", at_ms=1_772_439_300_000, text="  Hi\n there ", source=source
    )


def test_an_event_survives_its_coder() -> None:
    """An event with turns and attachments is the same after MessagePack, as between two workers."""
    event = msgspec.structs.replace(
        parse_event(record(GOOD)),
        turns=(Turn("Ruth", "Hello", 0, 10),),
        attachments=(Attachment("a.pdf", "application/pdf", 3),),
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=SupportEvent) == event


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("not-json", b""),
        ("not-json", b"hello"),
        ("not-json", b"\xef\xbb\xbf{}"),
        ("not-json", b'{"id": "a"'),
        ("not-json", b'{"id": "a"} {}'),
        ("not-json", b'{"id": "line\nbreak"}'),
        ("not-json", b'{"id": "a", "x": NaN}'),
        ("not-json", b'{"id": "a", "x": [-Infinity]}'),
        ("not-utf8", b'{"id": "caf\xe9"}'),
        ("not-utf8", '{"id": "a"}'.encode("utf-16")),
        ("not-utf8", b'{"id": "\xed\xa0\x80"}'),
        ("duplicate-key", b'{"id": "a", "id": "a"}'),
        ("duplicate-key", b'{"id": "a", "x": [{"y": 1, "y": 2}]}'),
        ("bad-number", b'{"id": "a", "x": 1e999}'),
        ("bad-number", b'{"id": "a", "x": 18446744073709551616}'),
        ("bad-number", b'{"id": "a", "x": -' + b"9" * 5000 + b"}"),
        ("lone-surrogate", b'{"id": "a", "x": "\\ud83d"}'),
        ("lone-surrogate", b'{"id": "a", "x": {"\\udc00": 1}}'),
        ("lone-surrogate", b'{"id": "a", "x": ' + b"[" * 63 + b'"\\udc00"' + b"]" * 63 + b"}"),
        ("too-deep", b'{"id": "a", "x": ' + b"[" * 64 + b"]" * 64 + b"}"),
        ("too-deep", b'{"id": "a", "x": ' + b"[" * 100_000),
        ("not-an-object", b"null"),
        ("not-an-object", [GOOD]),
        ("not-an-object", b'"text"'),
        ("not-an-object", b"true"),
        ("not-an-object", b"7"),
        ("missing-id", {}),
        ("missing-id", without("id")),
        ("bad-id", {**GOOD, "id": ""}),
        ("bad-id", {**GOOD, "id": "   "}),
        ("bad-id", {**GOOD, "id": 7}),
        ("bad-id", {**GOOD, "id": None}),
        ("bad-id", {**GOOD, "id": "a\u0000b"}),
        ("bad-id", {**GOOD, "id": "a\u202eb"}),
        ("bad-id", {**GOOD, "id": "x" * 257}),
        ("unknown-channel", {**GOOD, "channel": "fax"}),
        ("unknown-channel", {**GOOD, "channel": "Chat"}),
        ("unknown-channel", {**GOOD, "channel": ["chat"]}),
        ("unknown-channel", {**GOOD, "channel": None}),
        ("missing-field", without("channel")),
        ("missing-field", without("customer_id")),
        ("missing-field", without("at")),
        ("missing-field", without("text")),
        ("missing-field", {**GOOD, "channel": "email"}),
        ("missing-field", {**GOOD, "channel": "call"}),
        ("bad-field", {**GOOD, "customer_id": 17}),
        ("bad-field", {**GOOD, "customer_id": " "}),
        ("bad-field", {**GOOD, "text": None}),
        ("bad-field", {**GOOD, "text": ["Hi"]}),
        ("bad-field", {**GOOD, "text": {"de": "Hallo"}}),
        ("bad-field", {**GOOD, "at": 1_772_439_300}),
        ("no-text", {**GOOD, "text": ""}),
        ("no-text", {**GOOD, "text": " \n\u200b\ufeff\u00a0"}),
        ("bad-email", {**GOOD, "channel": "email", "raw": "just a text"}),
        ("bad-vtt", {**GOOD, "channel": "call", "vtt": ""}),
        ("no-text", {**GOOD, "channel": "call", "vtt": "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Ruth> </v>"}),
        ("too-large", b'{"id": "a"}' + b" " * MAX_EVENT_BYTES),
    ],
)
def test_what_breaks_a_rule_is_rejected_with_its_kind(kind: str, value: Any) -> None:
    """A value that breaks a rule is rejected with the rule's kind and a sentence, and nothing is put right."""
    error = rejected(value)
    assert error.kind == kind
    assert re.fullmatch(r"[A-Z].*\.", str(error), re.DOTALL)
    assert len(str(error)) < 250


def test_a_record_without_a_value_is_a_tombstone() -> None:
    """Kafka's null value is a kind of its own."""
    with pytest.raises(BadEvent) as caught:
        parse_event(SourceRecord(value=None))
    assert caught.value.kind == "tombstone"


def test_what_is_just_within_a_limit_is_read() -> None:
    """An id of 256 characters, 64 levels, 64-bit integers and an event of exactly 1 MiB are let through."""
    assert parse_event(record({**GOOD, "id": "x" * 256, "n": [2**64 - 1, -(2**63)]})).id == "x" * 256
    nested = json.dumps(GOOD)[:-1] + ', "x": ' + "[" * 63 + "]" * 63 + "}"
    assert parse_event(record(nested.encode())).id == "e-1"
    assert parse_event(record(json.dumps(GOOD).encode().ljust(MAX_EVENT_BYTES))).id == "e-1"


def test_an_error_quotes_little_of_the_customer() -> None:
    """What the customer wrote is in no error beyond a few words, wherever it stands."""
    secret = "word " * 10 + "SECRET"
    for wrong in (
        {**GOOD, "channel": secret},
        {**GOOD, "at": secret},
        {**GOOD, "id": secret + "\u0000"},
        {**GOOD, "customer_id": secret + "\u0000"},
        {**GOOD, "channel": "email", "raw": secret},
        {**GOOD, "channel": "call", "vtt": secret},
        {**GOOD, "channel": "call", "vtt": f"WEBVTT\n\n{secret}\n{secret}"},
        {**GOOD, "channel": "call", "vtt": f"WEBVTT\n\n00:01.000 --> {secret}"},
        json.dumps({**GOOD, secret: 1}).encode()[:-1] + f', "{secret}": 2}}'.encode(),
        json.dumps({**GOOD, "text": secret}).encode()[:-2],
    ):
        assert "SECRET" not in str(rejected(wrong))


def test_every_kind_in_the_code_is_known_and_documented() -> None:
    """KINDS holds exactly the kinds that the code raises, and the reference page has a row for each and no other."""
    raised = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "BadEvent":
                assert isinstance(node.args[0], ast.Constant)
                raised.add(node.args[0].value)
    page = (ROOT / "docs" / "reference" / "support-events.md").read_text(encoding="utf-8")
    assert raised == KINDS
    assert set(re.findall(r"^\| `([\w-]+)` \| .* \|$", page.split("## Kinds")[1], re.MULTILINE)) == KINDS


# ------------------------------------------------------------------------------------------------ the id of a dead letter


@pytest.mark.parametrize(
    ("value", "event_id"),
    [
        (b'{"id": "a"}', "a"),
        (b'{"x": NaN, "id": "a", "y": 1e999, "z": ' + b"9" * 5000 + b"}", "a"),
        (b'{"x": 1, "x": 2, "id": "a"}', "a"),
        (b'{"id": "a", "text": "caf\xe9"}', "a"),
        (b'{"id": "a", "text": "line\nbreak"}', "a"),
        (json.dumps({"id": "a", "text": "x" * 2 * MAX_EVENT_BYTES}).encode(), "a"),
        (b'{"order": {"id": "inner"}, "id": "a"}', "a"),
        (b'{"order": {"id": "inner"}}', None),
        (b'{"id": "a", "id": "b"}', None),
        (b'{"id": "caf\xe9"}', None),
        (b'{"id": "\\ud83d"}', None),
        (b'{"id": "  "}', None),
        (b'{"id": 7}', None),
        (b'{"id": "a"', None),
        (b'{"id": "a", "x": ' + b"[" * 100_000, None),
        (b'["id"]', None),
        (b"", None),
    ],
)
def test_the_id_is_read_wherever_it_is_certain(value: bytes, event_id: str | None) -> None:
    """The id of a broken event is found where there is exactly one good one, and is None else."""
    assert read_id(SourceRecord(value=value)) == event_id


def test_a_tombstone_has_no_id() -> None:
    """A record without a value has no id that could be read."""
    assert read_id(SourceRecord(value=None)) is None


# ------------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize(
    ("at", "milliseconds"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01t00:00:00z", 0),
        ("1970-01-01T00:00:00-00:00", 0),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1969-12-31T18:30:00-05:30", 0),
        ("1970-01-01T00:00:00.5Z", 500),
        ("1970-01-01T00:00:00.1239999Z", 123),
        ("1969-12-31T23:59:59.999Z", -1),
        ("2000-02-29T00:00:00Z", 951_782_400_000),
        ("2016-12-31T23:59:60Z", 1_483_228_800_000),
        ("2017-01-01T00:59:60.25+01:00", 1_483_228_800_250),
    ],
)
def test_rfc_3339_times_are_read(at: str, milliseconds: int) -> None:
    """A time of RFC 3339 becomes Unix milliseconds, whatever its offset, also at a leap second."""
    assert parse_event(record({**GOOD, "at": at})).at_ms == milliseconds


@pytest.mark.parametrize(
    "at",
    [
        "",
        "2026-03-02T09:15:00",
        "2026-03-02 09:15:00Z",
        "2026-03-02",
        "2026-03-02T09:15Z",
        "2026-03-02T09:15:00.Z",
        "2026-03-02T09:15:00+0100",
        "2026-03-02T09:15:00+24:00",
        "2026-03-02T09:15:00+01:60",
        "2026-02-29T09:15:00Z",
        "2026-13-01T09:15:00Z",
        "0000-01-01T00:00:00Z",
        "2026-03-02T24:00:00Z",
        "2026-03-02T09:60:00Z",
        "2026-03-02T09:15:60Z",
        "2026-03-02T09:15:61Z",
        "20260302T091500Z",
        "\u0662026-03-02T09:15:00Z",
        "2026-03-02T09:15:00Z\n",
        "now",
    ],
)
def test_other_times_are_refused(at: str) -> None:
    """A time without an offset, of another form or that no clock shows is refused."""
    assert rejected({**GOOD, "at": at}).kind == "bad-time"


# ------------------------------------------------------------------------------------------------ e-mail


def message(*fields: str, body: str = "Hello") -> str:
    return "\r\n".join(("From: Ada <ada@example.org>", *fields, "", body.replace("\n", "\r\n")))


def typed(content_type: str, body: str, transfer: str = "7bit") -> Mail:
    return read_mail(message(f"Content-Type: {content_type}", f"Content-Transfer-Encoding: {transfer}", body=body))


def multipart(kind: str, *parts: str) -> str:
    body = "".join(f"--b\n{part}\n" for part in parts)
    return message(f'Content-Type: multipart/{kind}; boundary="b"', body=f"preamble\n{body}--b--\nepilogue")


def test_an_email_becomes_an_event() -> None:
    """Subject, own text and attachments of an e-mail are in the event."""
    raw = multipart(
        "mixed", "\nWhere is it?\n", "Content-Type: image/png\nContent-Disposition: attachment; filename=a.png\n\nabc"
    )
    event = parse_event(record({**without("text"), "channel": "email", "raw": "Subject: My order\r\n" + raw}))
    assert (event.subject, event.text) == ("My order", "Where is it?")
    assert event.attachments == (Attachment("a.png", "image/png", 3),)
    assert event.turns == ()


@pytest.mark.parametrize(
    ("field", "subject"),
    [
        ("Subject: Hello", "Hello"),
        ("Subject: =?utf-8?q?Caf=C3=A9?= au lait", "Café au lait"),
        ("Subject: =?iso-8859-1?B?R3L832U=?=", "Grüße"),
        ("Subject: =?utf-8?q?one_?=\r\n =?utf-8?q?word?=", "one word"),
        ("Subject: folded\r\n\tover lines", "folded over lines"),
        ("Subject: =?iso-2022-jp?b?GyRCTk48fT1xGyhC?=", "領収書"),
        ("Subject: Grüße, als UTF-8", "Grüße, als UTF-8"),
        ("Subject:", None),
        ("X-Other: 1", None),
    ],
)
def test_encoded_subjects_are_decoded(field: str, subject: str | None) -> None:
    """Encoded words (RFC 2047), folded lines and raw UTF-8 (RFC 6532) give the subject that was written."""
    assert read_mail(message(field)).subject == subject


@pytest.mark.parametrize(
    ("content_type", "transfer", "body", "text"),
    [
        ("text/plain; charset=utf-8", "quoted-printable", "Caf=C3=A9 au=\n lait", "Café au lait"),
        ("text/plain; charset=iso-8859-1", "quoted-printable", "Gr=FC=DFe", "Grüße"),
        ("text/plain; charset=windows-1252", "quoted-printable", "=80 5 =96 =93ok=94", "€ 5 – “ok”"),
        ("text/plain; charset=iso-8859-1", "quoted-printable", "=80 5", "€ 5"),
        ("text/plain; charset=utf-8", "base64", base64.b64encode("Dzień dobry".encode()).decode(), "Dzień dobry"),
        ("text/plain; charset=utf-16", "base64", base64.b64encode("Zażółć".encode("utf-16")).decode(), "Zażółć"),
        ("text/plain; charset=iso-2022-jp", "7bit", "\x1b$BNN<}=q\x1b(B", "領収書"),
        ("text/plain; charset=utf-8", "8bit", "Où est-il ?", "Où est-il ?"),
        ("text/plain; charset=iso-8859-1", "8bit", "Où est-il ?", "Où est-il ?"),
        ("text/plain", "8bit", "Où 領収書", "Où 領収書"),
        ("text/plain; charset=klingon", "quoted-printable", "caf=C3=A9", "café"),
        ("text/plain; charset=utf-8", "quoted-printable", "caf=E9 here", "caf\ufffd here"),
        ("text/plain; charset=zlib", "base64", "aGVsbG8=", "hello"),
        ("text/plain; charset=punycode", "base64", "aGVsbG8=", "hello"),
        ("text/plain; charset=utf-7", "7bit", "+2D0- half", "\ufffd half"),
        ("text/plain; charset=utf-8", "base64", "aGVsbG8", "hello"),
        ("text/plain; charset=", "7bit", "hello", "hello"),
        ('text/plain; charset="', "7bit", "hello", "hello"),
        ("nonsense", "nonsense", "hello", "hello"),
    ],
)
def test_bodies_are_decoded(content_type: str, transfer: str, body: str, text: str) -> None:
    """Transfer encodings and charsets are undone; what is wrong or unknown costs characters, never the message."""
    assert typed(content_type, body, transfer).text == text


def test_of_alternatives_the_plain_text_is_read() -> None:
    """multipart/alternative gives its plain text, wherever it stands, and its HTML where the plain text is blank."""
    plain, rich = "Content-Type: text/plain\n\nplain words\n", "Content-Type: text/html\n\n<p>rich words</p>\n"
    assert read_mail(multipart("alternative", plain, rich)).text == "plain words"
    assert read_mail(multipart("alternative", rich, plain)).text == "plain words"
    assert read_mail(multipart("alternative", "Content-Type: text/plain\n\n \n", rich)).text == "rich words"
    assert read_mail(multipart("alternative", plain, rich)).attachments == ()


def test_all_texts_between_attachments_are_read() -> None:
    """Where a mail program puts text, picture and text one after the other, no text is lost."""
    picture = "Content-Type: image/jpeg; name=lamp.jpg\nContent-Transfer-Encoding: base64\n\naGVsbG8=\n"
    mail = read_mail(multipart("mixed", "\nThis one is broken:\n", picture, "\nDo you see the crack?\n"))
    assert mail.text == "This one is broken:\n\nDo you see the crack?"
    assert mail.attachments == (Attachment("lamp.jpg", "image/jpeg", 5),)


def test_pictures_of_a_page_are_attachments() -> None:
    """multipart/related gives the text of its first part and lists the rest."""
    page, picture = "Content-Type: text/html\n\n<b>Hello</b> <img src=cid:x>\n", "Content-Type: image/gif\n\nGIF"
    mail = read_mail(multipart("related", page, picture))
    assert (mail.text, mail.attachments) == ("Hello", (Attachment("", "image/gif", 3),))


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ("attachment; filename=a.txt", "a.txt"),
        ('attachment; filename="two words.txt"', "two words.txt"),
        ("attachment; filename*=UTF-8''th%C3%A9.txt", "thé.txt"),
        ("attachment; filename*0=long; filename*1=er.txt", "longer.txt"),
        ('inline; filename="=?utf-8?q?th=C3=A9=2Etxt?="', "thé.txt"),
        ("attachment; filename*=klingon''a.txt", "a.txt"),
        ("attachment", ""),
    ],
)
def test_attachments_are_listed_not_read(disposition: str, name: str) -> None:
    """A text with a file name or marked as an attachment is listed with its name and size, and not read as the body."""
    part = f"Content-Type: text/plain\nContent-Disposition: {disposition}\n\nnot read"
    mail = read_mail(multipart("mixed", "\nBody\n", part))
    assert (mail.text, mail.attachments) == ("Body", (Attachment(name, "text/plain", 8),))


def test_an_attached_message_is_one_attachment() -> None:
    """A message inside a message is listed with its size; neither its text nor its attachments are read."""
    inner = "Content-Type: message/rfc822\n\nFrom: b@example.org\nSubject: inner\n\ninner words\n"
    mail = read_mail(multipart("mixed", "\nSee the attached.\n", inner))
    assert mail.text == "See the attached."
    assert [(a.media_type, a.size_bytes > 0) for a in mail.attachments] == [("message/rfc822", True)]


def test_a_subject_alone_is_a_text_but_not_in_a_reply() -> None:
    """A first e-mail that says all in its subject is answered; an empty reply is not."""
    assert read_mail(message("Subject: Where is ORD-1?", body=" ")).text == "Where is ORD-1?"
    assert read_mail(message("Subject: Re: Hi", "References: <a@example.com>", body=" ")).text == ""


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "Hello, this is no message.",
        "Subject: nobody sent this\n\nHello",
        message("Content-Type: multipart/mixed", body="no boundary declared"),
        message("Content-Type: multipart/mixed; boundary=b", body="never begins"),
        message("Subject: " + "x" * (MAX_FIELD_CHARS + 1)),
        message("Content-Type: text/plain; name=" + "x" * 3_000),
        message("Content-Type: multipart/mixed; boundary=b", body="--b\n\n" * (MAX_PARTS + 1)),
        message("Content-Type: message/rfc822", body="Content-Type: message/rfc822\n\n" * 2_000),
        message(*["X-A: boundary=b"] * (MAX_MULTIPARTS + 1)),
    ],
)
def test_what_is_no_message_is_refused(raw: str) -> None:
    """A string without a From field, parts that cannot be told apart, and what passes a limit are `bad-email`."""
    with pytest.raises(BadEvent) as caught:
        read_mail(raw)
    assert caught.value.kind == "bad-email"


def test_an_email_without_words_is_refused() -> None:
    """An e-mail of only an attachment, or of only quoted history, has no text to answer."""
    scan = multipart("mixed", "Content-Type: application/pdf\n\nx")
    quote = message("References: <a@example.com>", body="> Will you come?\n> Yes?")
    for raw in (scan, quote):
        assert rejected({**GOOD, "channel": "email", "raw": raw}).kind == "no-text"


@pytest.mark.parametrize(
    "announcement",
    [
        "On Mon, 2 Mar 2026 at 08:11, Customer Care <support@example.com> wrote:",
        "On Mon, 2 Mar 2026 at 08:11, Customer Care\n<support@example.com> wrote:",
        "Am So., 1. März 2026 um 18:40 schrieb Kundenservice <support@example.com>:",
        "Kundenservice schrieb am 01.03.2026:",
        "Le ven. 27 févr. 2026 à 10:15, Service client <support@example.com> a écrit :",
        "Le 27/02/2026, Service client a écrit\u00a0:",
        "El lun, 2 mar 2026 a las 9:12, Atención al cliente (<support@example.com>) escribió:",
        "Il giorno lun 2 mar 2026 alle ore 09:30 Servizio <support@example.com> ha\nscritto:",
        "Op ma 2 mrt 2026 om 10:05 schreef Klantenservice <support@example.com>:",
        "Em seg., 2 de mar. de 2026 às 10:00, Apoio <support@example.com> escreveu:",
        "pon., 2 mar 2026 o 09:44 Obsługa klienta <support@example.com> napisał(a):",
        "W dniu 2.03.2026 o 09:44, Obsługa klienta pisze:",
        "2026年3月2日(月) 9:20 サポート <support@example.com>:",
        "-----Original Message-----\nFrom: Customer Care",
        "-----Ursprüngliche Nachricht-----",
        "----- Message d'origine -----",
        "-----Mensaje original-----",
        "From: Customer Care\nSent: Monday, 2 March 2026 09:01\nTo: Ada",
        "________________________________\nVon: Kundenservice\nGesendet: Montag, 2. März 2026",
        "*De :* Service client\n*Envoyé :* lundi 2 mars 2026",
    ],
)
@pytest.mark.parametrize("mark", ["", "> "])
def test_quoted_history_is_cut(announcement: str, mark: str) -> None:
    """What a mail program announces as history goes, in each language's form, marked with > or not."""
    text = without_history(f"My answer.\n\n{announcement}\n\n{mark}Dear Ada,\n{mark}old words\n")
    assert "My answer." in text
    assert "old words" not in text


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("On 2 March 2026 Bo wrote:\n> one?\n\nYes.\n\n> two?\nNo.", "Yes.\n\nNo."),
        ("> old\n>> older\nNew.", "New."),
        (">:( I am angry", ">:( I am angry"),
        ("On Monday I wrote:\nno date, no history", "On Monday I wrote:\nno date, no history"),
        ("On 2 March 2026 you wrote:\nthat it would come", "On 2 March 2026 you wrote:\nthat it would come"),
        (
            "See below.\n---------- Forwarded message ---------\nFrom: Carrier\nDate: Monday\n\nNot at home.",
            "See below.\n---------- Forwarded message ---------\nFrom: Carrier\nDate: Monday\n\nNot at home.",
        ),
        ("It costs > 5 euros", "It costs > 5 euros"),
        ("one\n\n\n\n\ntwo\n", "one\n\ntwo"),
    ],
)
def test_what_is_new_stays(text: str, kept: str) -> None:
    """Answers between quotes, forwarded messages and sentences that only look like an announcement stay."""
    assert without_history(text) == kept


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>one</p><p>two</p>", "one\n\ntwo"),
        ("<div>one</div><div>two<br>three</div>", "one\ntwo\nthree"),
        ("a<b>b</b>c &amp; &eacute;&nbsp;&#8217; &lt;b&gt;", "abc & é \u2019 <b>"),
        ("<STYLE>p { color: red }</STYLE>x<script>if (a<b) alert('</p>')</script>y<title>t</title>", "xy"),
        ("<script>never closed", ""),
        ("a<!-- <p>comment --> -->b", "a -->b"),
        ("a<!-- never closed", "a"),
        ("<!DOCTYPE html><?xml version='1'?><![if mso]>x<![endif]>", "x"),
        ("<ul><li>one<li>two</ul>", "- one\n- two"),
        ("<table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table>", "a b\nc"),
        ("new<blockquote>old<br>older</blockquote>newer", "new\n\n> old\n> older\n\nnewer"),
        ('<a href="a>b" title=\'"\'>link</a>', "link"),
        ("1 < 2 > 0 and <3", "1 < 2 > 0 and <3"),
        ("  spread \n over\tlines ", "spread over lines"),
        ("<p>&#xD800;&#0;&bogus;</p>", "\ufffd\ufffd&bogus;"),
    ],
)
def test_a_page_is_read_as_text(page: str, text: str) -> None:
    """HTML gives its words: blocks as lines, quotes behind >, references resolved, no scripts, styles or tags."""
    assert page_text(page) == text


def test_html_alone_is_the_text_without_its_quotes() -> None:
    """An e-mail that is only HTML gives its text, and what it quotes is cut as in plain text."""
    page = "<div>Thanks!</div><div>On 2 Mar 2026 Bo &lt;b@example.com&gt; wrote:<blockquote>old</blockquote></div>"
    assert typed("text/html; charset=utf-8", page).text == "Thanks!"


@pytest.mark.parametrize("piece", ["<a ", "<!--", "</a", '<a x="', "<a x='\">", "<![", "<script></", "&a", "<"])
def test_hostile_pages_take_linear_time(piece: str) -> None:
    """300 kB of markup that never ends is read within two seconds; `html.parser` takes minutes."""
    start = time.process_time()
    page_text(piece * (300_000 // len(piece)))
    assert time.process_time() - start < 2


# ------------------------------------------------------------------------------------------------ call

CUE = "00:01.000 --> 00:02.000\n"


def test_a_call_becomes_an_event() -> None:
    """A call's turns keep speaker and times, and its text is a line per turn."""
    vtt = (
        "WEBVTT\n\n00:01.000 --> 00:02.000\n<v Ruth>Hello.\n\n00:02.500 --> 00:03.000\n<v Ruth>How can I help?\n\n"
        "00:04.000 --> 00:05.250\n<v Ada Byron>My lamp broke.\n"
    )
    event = parse_event(record({**without("text"), "channel": "call", "vtt": vtt}))
    assert event.text == "Ruth: Hello. How can I help?\nAda Byron: My lamp broke."
    assert event.turns == (
        Turn("Ruth", "Hello. How can I help?", 1_000, 3_000),
        Turn("Ada Byron", "My lamp broke.", 4_000, 5_250),
    )


@pytest.mark.parametrize(
    ("vtt", "text"),
    [
        (f"WEBVTT\n\n{CUE}words", "words"),
        (f"\ufeffWEBVTT - a call\nKind: captions\n\n{CUE}words\n", "words"),
        (f"WEBVTT\ttitle\r\n\r\n{CUE}words".replace("\n", "\r\n").replace("\r\r", "\r"), "words"),
        (f"WEBVTT\n\n{CUE}words".replace("\n", "\r"), "words"),
        (f"WEBVTT\n{CUE}words", "words"),
        ("WEBVTT\n\n100:00:01.000 --> 100:00:02.000\nwords", "words"),
        ("WEBVTT\n\n00:01.000-->00:02.000 align:start line:0\nwords", "words"),
        (f"WEBVTT\n\nan id\n{CUE}words", "words"),
        (f"WEBVTT\n\nNOTE\n{CUE}words", "words"),
        (f"WEBVTT\n\nSTYLE\n::cue {{ color: red }}\n\nREGION\nid:a\n\nNOTE two\nlines\n\nNOTE\n\n{CUE}words", "words"),
        (f"WEBVTT\n\n{CUE}two\nlines\n\n\n\nNOTE end", "two lines"),
        (f"WEBVTT\n\n{CUE}<v.loud.first Ada  Byron>Hi</v>", "Ada Byron: Hi"),
        (f"WEBVTT\n\n{CUE}<v Ruth>Hi</v> <v Ada>Hello</v>", "Ruth: Hi\nAda: Hello"),
        (f"WEBVTT\n\n{CUE}<v Ruth>Hi</v> there", "Ruth: Hi\nthere"),
        (f"WEBVTT\n\n{CUE}<v R&amp;D>A &lt;b&gt; &amp; &eacute;", "R&D: A <b> & é"),
        (f"WEBVTT\n\n{CUE}<c.x>a</c><i>b</i> <00:01.500><lang en>c</lang><ruby>d<rt>e</rt></ruby>", "ab cde"),
        (f"WEBVTT\n\n{CUE}<video>x</video>", "x"),
        (f"WEBVTT\n\n{CUE}never <closed", "never"),
        (f"WEBVTT\n\n{CUE}</v>a\0b", "a\ufffdb"),
        (f"WEBVTT\n\n{CUE}\n{CUE}words", "words"),
    ],
)
def test_transcripts_are_read(vtt: str, text: str) -> None:
    """Everything that the recommendation allows in a file is read, and only what was said is kept."""
    assert as_text(read_transcript(vtt)) == text


@pytest.mark.parametrize(
    ("vtt", "line"),
    [
        ("", 1),
        (f"\n\nWEBVTT\n\n{CUE}x", 1),
        (f"WEBVTTX\n\n{CUE}x", 1),
        (f"webvtt\n\n{CUE}x", 1),
        (f"{CUE}x", 1),
        ("WEBVTT\n\n00:01 --> 00:02.000\nx", 3),
        ("WEBVTT\n\n00:01,000 --> 00:02,000\nx", 3),
        ("WEBVTT\n\n00:61.000 --> 01:62.000\nx", 3),
        ("WEBVTT\n\nid\n1:2:3 --> 4\nx", 4),
        ("WEBVTT\n\n00:01.000 --> 00:02.000x\nx", 3),
        ("WEBVTT\n\n00:05.000 --> 00:02.000\nx", 3),
        ("WEBVTT\n\n00:05.000 --> 00:05.000\nx", 3),
        (f"WEBVTT\n\n00:05.000 --> 00:06.000\nx\n\n{CUE}y", 6),
        (f"WEBVTT\n\n{CUE}x\n{CUE}y", 5),
        (f"WEBVTT\n\n{CUE}x\n\nwords without a time", 6),
        (f"WEBVTT\n\n{CUE}x\n\nSTYLE\nafter a cue", 6),
        (f"WEBVTT\n\none\ntwo\n{CUE}x", 3),
    ],
)
def test_broken_transcripts_name_the_line(vtt: str, line: int) -> None:
    """What the recommendation does not allow is `bad-vtt`, and the sentence names the line."""
    with pytest.raises(BadEvent, match=f"^Line {line} of the transcript") as caught:
        read_transcript(vtt)
    assert caught.value.kind == "bad-vtt"


@pytest.mark.parametrize("vtt", ["WEBVTT", "WEBVTT\n\n", "WEBVTT\n\nNOTE nothing\n", "WEBVTT\n\nSTYLE\n"])
def test_a_transcript_without_cues_is_broken(vtt: str) -> None:
    """A file in which nothing is said at any time is `bad-vtt`."""
    with pytest.raises(BadEvent, match="has no cue") as caught:
        read_transcript(vtt)
    assert caught.value.kind == "bad-vtt"


# ------------------------------------------------------------------------------------------------ wording and fuzz


def test_what_shows_nothing_is_blank() -> None:
    """Spaces, controls and zero-width characters are blank; letters, marks, signs and emoji are not."""
    assert all(is_blank(text) for text in ("", " \t\n", "\u00a0\u3000", "\u200b\u200d\ufeff\u0000", "\u2028"))
    assert not any(is_blank(text) for text in ("a", "?", "…", "👍", "\u200b字"))


def test_an_excerpt_is_short_and_printable() -> None:
    """A quote for an error has at most 40 characters of the text, and shows control characters as escapes."""
    assert excerpt("a\nb") == r"'a\nb'"
    assert excerpt("x" * 41) == f"'{'x' * 40}'…"


def outcome(value: bytes) -> str:
    """The kind of the rejection, or the channel; anything but an event or a BadEvent fails the test."""
    source = SourceRecord(value=value)
    event_id = read_id(source)
    try:
        event = parse_event(source)
    except BadEvent as error:
        return checked(error).kind
    assert event.source is source
    assert event.id == event_id
    assert not is_blank(event.text)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=SupportEvent) == event
    return event.channel


def checked(error: BadEvent) -> BadEvent:
    assert error.kind in KINDS
    assert str(error).isprintable()
    return error


@pytest.mark.parametrize("seed", range(20))
def test_random_bytes_are_rejected(seed: int) -> None:
    """Random bytes, alone and within a string of JSON, raise nothing but BadEvent."""
    rng = random.Random(seed)
    for _ in range(20):
        noise = rng.randbytes(rng.randrange(200))
        assert outcome(noise) in KINDS
        for channel, field in (("chat", "text"), ("email", "raw"), ("call", "vtt")):
            outcome(json.dumps({**without("text"), "channel": channel, field: noise.decode("latin-1")}).encode())


SAMPLES = [line for line in (ROOT / "pipeline/samples/support.jsonl").read_bytes().splitlines() if len(line) < 10_000]
SPLICES = [
    b"\x00",
    b"\xff",
    b'"',
    b"\\",
    b"\\n",
    b"\\ud800",
    b"{",
    b"[" * 70,
    b"NaN",
    b"1e999",
    b"<",
    b">",
    b"-->",
    b"=?",
]
SPLICES += [b"\\r\\n", b"--", b"Content-Type: ", b"multipart/mixed;", b"charset=x", b"=", b"%", b"(", b"@", b":", b";"]


def mutated(rng: random.Random, line: bytes) -> bytes:
    for _ in range(rng.randint(1, 4)):
        at, until = sorted(rng.randrange(len(line) + 1) for _ in range(2))
        how = rng.randrange(4)
        if how == 0:
            line = line[:at] + rng.choice(SPLICES) + line[at:]
        elif how == 1:
            line = line[:at] + line[min(until, at + 20) :]
        elif how == 2:
            line = line[:at] + line[at : at + 40] + line[at:]
        else:
            line = line[:at] + bytes([rng.randrange(256)]) + line[at + 1 :]
    return line


@pytest.mark.parametrize("seed", range(40))
def test_mutated_samples_never_crash(seed: int) -> None:
    """Sample events with bytes cut, doubled, changed and put in are read or rejected, and nothing else happens."""
    rng = random.Random(seed)
    for _ in range(25):
        outcome(mutated(rng, rng.choice(SAMPLES)))


def mutated_text(rng: random.Random, text: str) -> str:
    return mutated(rng, text.encode()).decode("utf-8", "replace").replace("\\r\\n", "\r\n")


@pytest.mark.parametrize("seed", range(40))
def test_mutated_messages_and_transcripts_never_crash(seed: int) -> None:
    """The same for what stands inside the JSON: the message of an e-mail, the transcript of a call."""
    rng = random.Random(seed)
    for _ in range(15):
        try:
            event = json.loads(rng.choice(SAMPLES))
        except ValueError:
            continue
        if not isinstance(event, dict):
            continue
        for field in ("raw", "vtt"):
            if field in event:
                event[field] = mutated_text(rng, event[field])
        outcome(json.dumps(event).encode())
