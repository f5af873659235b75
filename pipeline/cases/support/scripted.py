"""A model that follows a script instead of thinking: replies that keep to the schema, by language, or those that are given by id.

For tests and `scripts/evaluate`, where our own steps are what is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import orjson

from pipeline.cases.support.phrases import languages
from transforms.remote.client import Call, Outcome
from transforms.remote.clock import Clock
from transforms.remote.questions import Chat, Reply
from transforms.remote.settings import ModelSettings

REPLIES = {
    "en": "Thank you for your message. We are looking into it and will get back to you.",
    "de": "Vielen Dank für Ihre Nachricht. Wir kümmern uns darum und melden uns bei Ihnen.",
    "fr": "Merci pour votre message. Nous nous en occupons et revenons vers vous.",
    "es": "Gracias por su mensaje. Nos ocupamos de ello y le responderemos.",
    "it": "Grazie per il suo messaggio. Ce ne occupiamo e le risponderemo.",
    "nl": "Bedankt voor uw bericht. Wij kijken ernaar en komen bij u terug.",
    "pl": "Dziękujemy za wiadomość. Zajmujemy się tą sprawą i odpowiemy.",
    "pt": "Obrigado pela sua mensagem. Estamos a tratar do assunto e voltaremos a contactar.",
    "ja": "ご連絡ありがとうございます。確認のうえ、改めてご連絡いたします。",
}
"""A harmless reply in each language."""

_ASKED = re.compile(
    r"^(?:Answer the customer in|Give the whole JSON object again, put right, in) ([A-Z]\w+)", re.MULTILINE
)


def scripted_reply(message: str) -> str:
    """The JSON that a well-behaved model gives to the last message of a prompt: in the language that it asks for, else English."""
    asked = _ASKED.findall(message)
    code = next((code for code, one in languages().items() if asked and one.name == asked[-1]), "en")
    return reply_json(REPLIES[code], code)


def reply_json(text: str, language: str = "en", **fields: object) -> str:
    """A reply as the schema wants it; `fields` take the place of what is plain."""
    value = {
        "reply": text,
        "language": language,
        "intent": "other",
        "needs_human": False,
        "confidence": 0.9,
        "claims": [],
    }
    return orjson.dumps({**value, **fields}).decode()


class ScriptedModel:
    """A `Caller` that answers at once: by the script where the event is in it, else with `scripted_reply`."""

    def __init__(self, script: Mapping[str, tuple[str, ...]]) -> None:
        self._script = script

    async def call(self, call: Call) -> Outcome:
        """The outcome of a call. One whose id ends in ``#repair`` gets the second reply of its event."""
        messages = call.question.messages if isinstance(call.question, Chat) else ()
        event_id, _, again = call.id.partition("#")
        replies = self._script.get(event_id, ())
        text = replies[min(bool(again), len(replies) - 1)] if replies else scripted_reply(messages[-1].content)
        tokens = sum(len(message.content.split()) for message in messages)
        reply = Reply(text, "stop", "scripted", tokens, len(text.split()))
        return Outcome(call.id, reply, None, None, call.attempts + 1, 0.0, 0.0, "scripted")

    async def close(self) -> None:
        """Holds nothing."""


class MakeScripted:
    """Makes a `ScriptedModel` on a worker."""

    def __init__(self, script: Mapping[str, tuple[str, ...]]) -> None:
        self._script = dict(script)

    def __call__(self, _settings: ModelSettings, _clock: Clock) -> ScriptedModel:
        """The model."""
        return ScriptedModel(self._script)
