"""A model's reply that must be JSON of a schema: read, and checked in any case, whatever the server promised. No Beam."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson

from transforms.errors import BadReply

_FENCED = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
_EXCERPT = 200


class ReplySchema:
    """A JSON Schema (draft 2020-12) for replies. `schema` is its JSON, for servers that take one. Raises ValueError for none."""

    def __init__(self, name: str, schema: dict[str, Any]) -> None:
        self.name = name
        self.schema = schema
        self._validator = jsonschema_rs.Draft202012Validator(schema)

    def read(self, text: str) -> dict[str, Any]:
        """Return the JSON object that `text` is. One fenced block of Markdown around it is forgiven, nothing else.

        Raises:
            BadReply: ``not-json`` or ``schema``; the sentence says where, so that the model can put it right.
        """
        fenced = _FENCED.fullmatch(text)
        try:
            value = orjson.loads(fenced[1] if fenced else text)
        except orjson.JSONDecodeError as error:
            raise BadReply("not-json", f"The reply is not one JSON object: {error}.") from None
        for wrong in self._validator.iter_errors(value):
            where = "/".join(map(str, wrong.instance_path)) or "the object"
            raise BadReply("schema", f"The reply breaks its schema at {where}: {wrong.message[:_EXCERPT]}.")
        if not isinstance(value, dict):
            raise BadReply("schema", "The reply breaks its schema: it is no object.")
        return value

    def response_format(self) -> dict[str, Any]:
        """Return the field ``response_format`` of `openai-chat`'s requests that makes a server keep to the schema."""
        return {"type": "json_schema", "json_schema": {"name": self.name, "schema": self.schema, "strict": True}}


@lru_cache(maxsize=8)
def read_schema(path: Path) -> ReplySchema:
    """Return the schema in the file `path`, named like it."""
    return ReplySchema(path.name.split(".")[0], orjson.loads(path.read_bytes()))
