"""A schema registry, asked over its REST interface: Confluent's, and Apicurio's where that has more to say.

The requests and replies are those of Confluent's "Schema Registry API Reference" (Confluent's registry, Apicurio's
``/apis/ccompat/v7``, Karapace). Ids that are Apicurio's own go to ``/apis/registry/v3`` of the same server.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from typing import Any, Literal, NoReturn, cast, get_args
from urllib.parse import quote, urlsplit

import msgspec
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from transforms.errors import SettingsError, Unavailable, UnknownSchema
from transforms.formats.wire import SchemaId
from transforms.remote.clock import SystemClock

SchemaType = Literal["AVRO", "PROTOBUF", "JSON"]

LEVELS = (
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
    "NONE",
)
"""The levels of compatibility of a subject."""

UNKNOWN_MEMORY_S = 30.0
"""How long a registry is not asked again for a schema that it did not know, in seconds."""

MAX_REFERENCES = 64
"""How many schemas one schema may refer to, all levels counted."""

_JSON = "application/vnd.schemaregistry.v1+json"
_COMPAT = re.compile(r"/apis/ccompat/v[0-9]+$")
_SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
RETRIES = Retry(
    total=6,
    backoff_factor=0.2,
    backoff_max=4.0,
    backoff_jitter=0.2,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,  # every request here may be sent twice
    raise_on_status=False,
)
"""How often a request is sent again: seven attempts within about ten seconds."""


class RegistrySettings(msgspec.Struct, frozen=True):
    """Where a registry is and how it is reached.

    `url` is the base of the Confluent interface. `user` and `password`, or `token`, are sent with each request; a password and a
    token are ``${env:NAME}``, resolved where the request is made. `ca` is a file of certificates to trust. `timeout_s` bounds one
    attempt; attempts that fail for a passing reason are repeated for about ten seconds. `long_ids` says what the number of an 8-byte
    prefix is: Apicurio's ``global`` or ``content`` id.
    """

    url: str
    user: str | None = None
    password: str | None = None
    token: str | None = None
    ca: str | None = None
    timeout_s: float = 5.0
    long_ids: Literal["global", "content"] = "global"

    def __post_init__(self) -> None:
        """Raise SettingsError for a URL that is none, a secret that stands here itself, and two kinds of auth at once."""
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise SettingsError("url is not an http or https URL; write it like http://host:8081.")
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise SettingsError("url must be a base URL alone; give user, password or token beside it.")
        for name, value in (("password", self.password), ("token", self.token)):
            if value is not None and not _SECRET.fullmatch(value):
                raise SettingsError(
                    f"{name} must be ${{env:NAME}}, with NAME set on the workers, never the secret itself."
                )
        if (self.user is None) != (self.password is None):
            raise SettingsError("user and password go together; one of them is missing.")
        if self.token is not None and self.user is not None:
            raise SettingsError("token contradicts user and password; give one of the two.")
        if not 0 < self.timeout_s < float("inf"):
            raise SettingsError(f"timeout_s is {self.timeout_s:g}; it must be a number above 0.")


class Schema(msgspec.Struct, frozen=True):
    """A schema, with those it refers to by name, which may refer to others."""

    type: SchemaType
    text: str
    references: tuple[tuple[str, Schema], ...] = ()


class Registry:
    """One registry, for the life of a process. What it said of an id is kept: a schema under an id never changes.

    May be used by several threads. Is made where it is used, and refuses to be pickled.
    """

    def __init__(
        self,
        settings: RegistrySettings,
        retries: Retry | None = None,
        monotonic_s: Callable[[], float] = SystemClock().monotonic_s,
    ) -> None:
        self._settings = settings
        self._url = settings.url.rstrip("/")
        self._monotonic_s = monotonic_s
        self._schemas: dict[SchemaId, Schema] = {}
        self._unknown: dict[SchemaId, tuple[float, str]] = {}
        self._lock = threading.Lock()
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retries or RETRIES))
        self._session.headers.update({"Accept": f"{_JSON}, application/json", "Content-Type": _JSON})
        self._authorize()

    def _authorize(self) -> None:
        settings = self._settings
        if settings.user is not None and settings.password is not None:
            self._session.auth = (_resolved(settings.user), _resolved(settings.password))
        elif settings.token is not None:
            self._session.headers["Authorization"] = f"Bearer {_resolved(settings.token)}"
        if settings.ca is not None:
            self._session.verify = settings.ca

    def __reduce__(self) -> NoReturn:
        raise TypeError("A Registry holds secrets and sockets, and is never pickled; it is made on the worker.")

    def schema(self, schema_id: SchemaId) -> Schema:
        """The schema of an id, with all it refers to.

        Raises UnknownSchema where the registry has none, Unavailable where it does not answer.
        """
        found = self._schemas.get(schema_id)
        if found is not None:
            return found
        with self._lock:
            if schema_id not in self._schemas:
                self._refuse_unknown(schema_id)
                try:
                    self._schemas[schema_id] = self._fetch(schema_id)
                except UnknownSchema as error:
                    self._unknown[schema_id] = (self._monotonic_s() + UNKNOWN_MEMORY_S, str(error))
                    raise
            return self._schemas[schema_id]

    def _refuse_unknown(self, schema_id: SchemaId) -> None:
        until_s, sentence = self._unknown.get(schema_id, (0.0, ""))
        if self._monotonic_s() < until_s:
            raise UnknownSchema(sentence)
        self._unknown.pop(schema_id, None)

    def check(self) -> None:
        """Raises Unavailable unless a schema registry answers at the address, and lets these credentials in."""
        response = self._request("GET", "/schemas/types")
        if response.status_code == 404:
            raise Unavailable(
                f"What answers at {self._url} is no schema registry; Apicurio's ends in /apis/ccompat/v7."
            )
        self._refuse_other(response)

    def id_of(self, subject: str, schema: Schema) -> int | None:
        """The id under which this very schema stands in the subject, or None. Raises Unavailable."""
        response = self._request("POST", f"/subjects/{quote(subject, safe='')}", _body(schema))
        if response.status_code == 404:
            return None
        return int(self._content(response, "an id", ("id",))["id"])

    def has_subject(self, subject: str) -> bool:
        """Whether the subject has a version. Raises Unavailable."""
        response = self._request("GET", f"/subjects/{quote(subject, safe='')}/versions")
        if response.status_code == 404:
            return False
        self._refuse_other(response)
        return True

    def is_compatible(self, subject: str, schema: Schema) -> tuple[bool, str]:
        """Whether the subject's level lets the schema in as its next version, and what the registry says against it.

        A subject that does not exist takes any. Raises Unavailable.
        """
        path = f"/compatibility/subjects/{quote(subject, safe='')}/versions/latest?verbose=true"
        response = self._request("POST", path, _body(schema))
        if response.status_code == 404:
            return True, ""
        content = self._content(response, "a verdict", ("is_compatible",))
        return bool(content["is_compatible"]), "; ".join(map(str, content.get("messages") or ()))

    def set_level(self, subject: str, level: str) -> None:
        """Sets the subject's level of compatibility, one of `LEVELS`. Raises Unavailable."""
        path = f"/config/{quote(subject, safe='')}"
        self._refuse_other(self._request("PUT", path, {"compatibility": level}))

    def register(self, subject: str, schema: Schema) -> int:
        """Makes the schema the subject's next version, unless it is one already; gives its id.

        Raises SettingsError where the registry refuses it (incompatible, or no schema), Unavailable where it does not answer.
        """
        response = self._request("POST", f"/subjects/{quote(subject, safe='')}/versions", _body(schema))
        if response.status_code in {409, 422}:
            raise SettingsError(f"The registry refuses the schema for the subject {subject}: {_said(response)}")
        return int(self._content(response, "an id", ("id",))["id"])

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def _fetch(self, schema_id: SchemaId) -> Schema:
        kind = self._settings.long_ids if schema_id.kind == "long" else schema_id.kind
        if kind in {"global", "content"}:
            return self._fetch_own(kind, schema_id)
        path = f"/schemas/ids/{schema_id.value}" if kind == "id" else f"/schemas/guids/{schema_id.value}"
        response = self._request("GET", path)
        if response.status_code == 404:
            raise UnknownSchema(f"The registry at {self._url} has no schema with the {schema_id}.")
        content = self._content(response, "a schema", ("schema",))
        return self._with_references(content, [MAX_REFERENCES])

    def _with_references(self, content: Mapping[str, Any], left: list[int]) -> Schema:
        references = []
        for reference in content.get("references") or ():
            left[0] -= 1
            if left[0] < 0:
                raise UnknownSchema(f"A schema refers to more than {MAX_REFERENCES} others; that is not followed.")
            subject, version = quote(str(reference["subject"]), safe=""), reference["version"]
            response = self._request("GET", f"/subjects/{subject}/versions/{version}")
            if response.status_code == 404:
                raise UnknownSchema(
                    f"A schema refers to version {version} of {subject}, which the registry at {self._url} does not have."
                )
            below = self._content(response, "a schema", ("schema",))
            references.append((str(reference["name"]), self._with_references(below, left)))
        # Confluent leaves the type out where it is Avro.
        return Schema(content.get("schemaType") or "AVRO", content["schema"], tuple(references))

    def _fetch_own(self, kind: str, schema_id: SchemaId) -> Schema:
        """A schema by an id of Apicurio's own."""
        if not _COMPAT.search(self._url):
            raise UnknownSchema(
                f"The {schema_id} is one of Apicurio's, and {self._url} is not its address; that ends in /apis/ccompat/v7."
            )
        path = f"/ids/{kind}Ids/{schema_id.value}"
        response = self._request("GET", path, own=True)
        if response.status_code == 404:
            raise UnknownSchema(f"The registry at {self._url} has no schema with the {schema_id}.")
        self._refuse_other(response)
        references = self._request("GET", f"{path}/references", own=True)
        self._refuse_other(references)
        listed = [
            {"name": one["name"], "subject": one["artifactId"], "version": one["version"]} for one in references.json()
        ]
        schema_type = _type_of(response.headers.get("X-Registry-ArtifactType", ""), response.text)
        content = {"schema": response.text, "schemaType": schema_type, "references": listed}
        return self._with_references(content, [MAX_REFERENCES])

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, own: bool = False
    ) -> requests.Response:
        base = _COMPAT.sub("/apis/registry/v3", self._url) if own else self._url
        try:
            return self._session.request(
                method,
                base + path,
                data=None if body is None else msgspec.json.encode(body),
                timeout=self._settings.timeout_s,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            raise Unavailable(f"The schema registry at {self._url} does not answer: {type(error).__name__}.") from None

    def _refuse_other(self, response: requests.Response) -> None:
        """Raises Unavailable unless the answer is of the 2xx kind."""
        if not 200 <= response.status_code < 300:
            raise Unavailable(
                f"The schema registry at {self._url} answered with status {response.status_code}: {_said(response)}"
            )

    def _content(self, response: requests.Response, what: str, names: tuple[str, ...]) -> dict[str, Any]:
        self._refuse_other(response)
        try:
            content = response.json()
        except requests.JSONDecodeError:
            content = None
        if not isinstance(content, dict) or any(name not in content for name in names):
            raise Unavailable(
                f"The schema registry at {self._url} did not answer with {what}; is it a schema registry?"
            )
        return content


def _type_of(named: str, text: str) -> SchemaType:
    """Apicurio names the type of an artifact, not that of content; there the text tells."""
    for known in get_args(SchemaType):
        if named == known:
            return cast("SchemaType", known)
    start = text.lstrip()[:1]
    if start not in {"{", "[", '"'}:
        return "PROTOBUF"
    return "JSON" if '"$schema"' in text or '"properties"' in text else "AVRO"


def _body(schema: Schema) -> dict[str, Any]:
    body = {"schema": schema.text}
    return body if schema.type == "AVRO" else {**body, "schemaType": schema.type}


def _said(response: requests.Response) -> str:
    """What an answer says of itself, in a line."""
    try:
        content = response.json()
    except requests.JSONDecodeError:
        content = {}
    message = content.get("message") if isinstance(content, dict) else None
    return " ".join(str(message or response.text).split())[:500] or "nothing more."


def _resolved(text: str) -> str:
    """The text with ``${env:NAME}`` replaced. Raises SettingsError where the variable is not set."""

    def value_of(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise SettingsError(
                f"The registry's settings refer to the environment variable {name}, which is not set here."
            )
        return os.environ[name]

    return _SECRET.sub(value_of, text)


OpenRegistry = Callable[[RegistrySettings], Registry]
"""How a registry is come by; `shared_registry`, but for tests."""

_registries: dict[tuple[int, RegistrySettings], Registry] = {}
_registries_lock = threading.Lock()


def shared_registry(settings: RegistrySettings) -> Registry:
    """The process's registry for these settings."""
    key = (os.getpid(), settings)
    with _registries_lock:
        if key not in _registries:
            _registries[key] = Registry(settings)
        return _registries[key]
