"""E-mails: RFC 5322 messages with their MIME parts (RFC 2045 to 2047, 2183, 2231), read with the standard library.

The message arrives as a string of JSON. Bytes above ASCII in it are therefore UTF-8, whatever the message declares; the
declared charset holds where a transfer encoding (base64, quoted-printable) hid the bytes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from email import message_from_bytes
from email.message import EmailMessage, Message
from email.policy import EmailPolicy, default
from functools import lru_cache
from typing import Any

import msgspec

from pipeline.cases.support.page import page_text
from pipeline.cases.support.quoting import without_history
from pipeline.cases.support.wording import encodable, is_blank
from transforms.errors import BadEvent

MAX_FIELD_CHARS = 16_384
"""The most characters of one header field that is read: parsing takes time that grows with the square of it."""

MAX_MIME_FIELD_CHARS = 2_048
"""The same for fields that describe a part (Content-…), the slowest to parse."""

MAX_PARTS = 500
"""The most lines that may open or close a part of a message, these being lines that begin with ``--``."""

MAX_MULTIPARTS = 50
"""The most boundaries that a message may declare, and with it how deep its parts may nest."""

MAX_NAME_CHARS = 100
"""The longest name of a sender that an answer addresses."""

_MESSAGE_ID = re.compile(r"<[!-;=?-~]{1,250}@[!-;=?-~]{1,250}>", re.ASCII)
_AS_BYTES = frozenset({"base64", "quoted-printable", "x-uuencode", "uuencode", "uue", "x-uue"})
_STATEFUL = ("iso2022", "hz", "utf-7")
_UNWANTED = frozenset({"idna", "punycode", "undefined", "unicode-escape", "raw-unicode-escape", "mbcs", "oem"})
_BOUNDARY_LINE = re.compile(r"^--\S", re.MULTILINE)
_BOUNDARY = re.compile(r"\bboundary(?:\*[^=\s]*)?\s*=", re.IGNORECASE)


class Attachment(msgspec.Struct, frozen=True, array_like=True):
    """A file that came with an e-mail; listed, not read.

    `name` is empty where the message names none; `size_bytes` is the size after the transfer encoding is undone.
    """

    name: str
    media_type: str
    size_bytes: int


class Mail(msgspec.Struct, frozen=True):
    """What an e-mail says: its subject, its own text without what it quotes, its attachments, and what an answer needs.

    `message_id` and `references` are message ids with their angle brackets; `sender` is the address to answer to (Reply-To, else
    From), `sender_name` the name beside it. What is not there, or is no such thing, is None or left out.
    """

    subject: str | None
    text: str
    attachments: tuple[Attachment, ...]
    message_id: str | None = None
    references: tuple[str, ...] = ()
    sender: str | None = None
    sender_name: str | None = None


def read_mail(raw: str) -> Mail:
    """Read an RFC 5322 message.

    Of alternatives the plain text is taken, else the HTML as text. A wrong or unknown charset costs the characters it
    hides (U+FFFD), never the message. A message without a text of its own that opens a conversation has its subject as
    text. Raises `BadEvent` of the kind ``bad-email`` where there is no From field, a limit of this module is passed,
    or the parts cannot be told apart.
    """
    _check_parts(raw)
    try:
        return _read(raw)
    except BadEvent:
        raise
    except Exception as error:  # noqa: BLE001 - the standard library raises almost anything on malformed input
        reason = type(error).__name__
        raise BadEvent("bad-email", f"The e-mail in `raw` is too malformed to be parsed ({reason}).") from None


def _check_parts(raw: str) -> None:
    """Refuse a message with so many or so deep parts that the standard library would take seconds."""
    if len(_BOUNDARY_LINE.findall(raw)) > MAX_PARTS:
        raise BadEvent("bad-email", f"The e-mail in `raw` has more than {MAX_PARTS} lines that bound a part.")
    if len(_BOUNDARY.findall(raw)) > MAX_MULTIPARTS:
        raise BadEvent("bad-email", f"The e-mail in `raw` declares more than {MAX_MULTIPARTS} boundaries of parts.")


def _read(raw: str) -> Mail:
    message = message_from_bytes(raw.encode(), policy=_POLICY)
    if "from" not in message:
        raise BadEvent("bad-email", "The e-mail in `raw` has no From field; send the message with its header.")
    subject = " ".join(encodable(str(message["subject"] or "")).split())
    text = without_history(_body(message))
    opens = "in-reply-to" not in message and "references" not in message
    own_id = _message_ids(message, "message-id")
    sender, sender_name = _sender(message)
    return Mail(
        subject=subject or None,
        text=subject if opens and is_blank(text) else text,
        attachments=tuple(_attachment(part) for part in _leaves(message) if not _is_body(part)),
        message_id=own_id[0] if own_id else None,
        references=_message_ids(message, "references") or _message_ids(message, "in-reply-to"),
        sender=sender,
        sender_name=sender_name,
    )


def _message_ids(message: Message[Any, Any], field: str) -> tuple[str, ...]:
    """The message ids in a field (RFC 5322, section 3.6.4), each once; they go into the header of an answer as they are."""
    return tuple(dict.fromkeys(_MESSAGE_ID.findall(" ".join(str(message[field] or "").split()))))


def _sender(message: Message[Any, Any]) -> tuple[str | None, str | None]:
    """The address to answer to, and the name beside it."""
    for field in ("reply-to", "from"):
        for mailbox in getattr(message[field], "addresses", ()):
            if mailbox.username and mailbox.domain and mailbox.addr_spec.isprintable():
                name = " ".join(encodable(mailbox.display_name).split())
                return mailbox.addr_spec, name if name and name.isprintable() and len(name) <= MAX_NAME_CHARS else None
    return None, None


class _BoundedPolicy(EmailPolicy):
    """`email.policy.default`, but a long field is refused, and one that cannot be parsed is given as it stands."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        """Parse a header field; see `email.policy.EmailPolicy.header_fetch_parse`."""
        describes_part = name.lower().startswith("content-")
        limit = MAX_MIME_FIELD_CHARS if describes_part else MAX_FIELD_CHARS
        if len(value) > limit:
            raise BadEvent("bad-email", f"A header field of the e-mail in `raw` is longer than {limit:,} characters.")
        try:
            return _mime_field(name, value) if describes_part else super().header_fetch_parse(name, value)
        except Exception:  # noqa: BLE001 - as above: IndexError, AttributeError, RecursionError, …
            return encodable(value)


@lru_cache(maxsize=512)
def _mime_field(name: str, value: str) -> Any:
    """Parse a Content-… field once: a message is asked for it a dozen times, and most messages have the same."""
    return default.header_fetch_parse(name, value)


_POLICY = _BoundedPolicy()


def _body(part: Message[Any, Any]) -> str:
    """Give the text of a part: of the best alternative, of the root of related parts, or of all parts in turn."""
    if not part.is_multipart() or part.get_content_maintype() != "multipart":
        if part.get_content_maintype() == "multipart":
            raise BadEvent("bad-email", "The e-mail in `raw` is multipart, but its boundary line is not in it.")
        return _leaf_text(part) if _is_body(part) else ""
    children = list(part.iter_parts()) if isinstance(part, EmailMessage) else []
    texts = [_body(child) for child in children]
    if part.get_content_subtype() == "alternative":
        plain = (text for child, text in zip(children, texts, strict=True) if child.get_content_type() == "text/plain")
        rich = reversed(texts)
        return next((text for text in (*plain, *rich) if not is_blank(text)), "")
    if part.get_content_subtype() == "related":
        return texts[0] if texts else ""
    return "\n\n".join(text for text in texts if not is_blank(text))


def _leaf_text(part: Message[Any, Any]) -> str:
    text = encodable(_decoded(part)).replace("\r\n", "\n").replace("\r", "\n")
    return page_text(text) if part.get_content_subtype() == "html" else text


def _decoded(part: Message[Any, Any]) -> str:
    payload = _payload(part)
    charset = _codec(part.get_content_charset() or "ascii")
    transfer = str(part.get("content-transfer-encoding", "")).strip().lower()
    if transfer in _AS_BYTES or (payload.isascii() and charset.startswith(_STATEFUL)):
        return payload.decode(charset, "replace")
    return payload.decode("utf-8", "replace")


def _payload(part: Message[Any, Any]) -> bytes:
    payload = part.get_payload(decode=True)
    return payload if isinstance(payload, bytes) else b""


def _codec(charset: str) -> str:
    """Name Python's codec for a MIME charset: Latin-1 means windows-1252, ASCII and what is unknown UTF-8."""
    try:
        name = codecs.lookup(charset).name
        b"a".decode(name, "ignore")
    except (LookupError, ValueError):
        return "utf-8"
    if name in _UNWANTED or name == "ascii":
        return "utf-8"
    return "cp1252" if name == "iso8859-1" else name


def _leaves(part: Message[Any, Any]) -> Iterator[Message[Any, Any]]:
    """Give the parts that hold something, an attached message being one."""
    if part.is_multipart() and part.get_content_maintype() == "multipart":
        for child in part.get_payload():
            if isinstance(child, Message):
                yield from _leaves(child)
    else:
        yield part


def _is_body(part: Message[Any, Any]) -> bool:
    """Tell whether a part is shown as text: plain or HTML, without a file name, not marked as an attachment."""
    return (
        part.get_content_type() in ("text/plain", "text/html")
        and part.get_content_disposition() != "attachment"
        and not part.get_filename()
    )


def _attachment(part: Message[Any, Any]) -> Attachment:
    name = "".join(char if char.isprintable() else "\ufffd" for char in encodable(part.get_filename() or ""))
    return Attachment(name=name, media_type=part.get_content_type(), size_bytes=_size(part))


def _size(part: Message[Any, Any]) -> int:
    inner = part.get_payload(0) if part.is_multipart() else None
    return len(inner.as_bytes()) if isinstance(inner, Message) else len(_payload(part))
