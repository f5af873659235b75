"""The file ``formats.yaml``: which topic is in which format, and which registry knows the schemas.

The values travel inside the pickled graph, with the schemas in them: workers need neither the file nor the files it names.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Hashable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import msgspec
import yaml

from transforms.errors import SettingsError
from transforms.formats import avro, protobuf
from transforms.formats.registry import LEVELS, RegistrySettings, Schema, SchemaType

Format = Literal["json", "avro", "protobuf"]
"""The formats of a topic."""

Naming = Literal["TopicName", "RecordName", "TopicRecordName"]
"""How a subject is named, in Confluent's words."""

_TYPES: Mapping[str, SchemaType] = {"json": "JSON", "avro": "AVRO", "protobuf": "PROTOBUF"}


class TopicFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The format of one topic.

    Without `registry` a value is the payload alone, as the schema says. With it a value says which schema it was written with.
    `schema` is then the reader's own view of what comes in, and what is registered for what goes out. `descriptors` is a Protobuf
    schema, compiled. `schema_id` is what the registry gave for it, once it was asked.
    """

    topic: str
    format: Format = "json"
    schema: Schema | None = None
    descriptors: bytes | None = None
    message: str | None = None
    registry: RegistrySettings | None = None
    subject: str | None = None
    subject_naming: Naming = "TopicName"
    register: bool = True
    compatibility: str | None = None
    schema_id: int | None = None

    @property
    def is_plain(self) -> bool:
        """Whether values are JSON and nothing else, so that there is nothing to do."""
        return self.format == "json" and self.registry is None

    @property
    def record_name(self) -> str:
        """The full name of the schema's record or message. Raises SettingsError where it has none."""
        if self.schema is None:
            raise SettingsError("schema is missing.")
        if self.format == "avro":
            return avro.record_name(self.schema)
        if self.format == "protobuf":
            return str(protobuf.chosen(protobuf.Messages(self.descriptors or b""), self.message).full_name)
        title = msgspec.json.decode(self.schema.text).get("title")
        if not isinstance(title, str) or not title:
            raise SettingsError("the JSON schema has no title, which is the name of its record.")
        return title

    @property
    def subject_name(self) -> str:
        """The subject that the schema is registered under."""
        if self.subject is not None:
            return self.subject
        if self.subject_naming == "TopicName":
            return f"{self.topic}-value"
        return self.record_name if self.subject_naming == "RecordName" else f"{self.topic}-{self.record_name}"


class _TopicKeys(msgspec.Struct, frozen=True):
    """The keys of a topic in the file."""

    format: Format
    schema: str | None = None
    message: str | None = None
    registry: Any = None
    subject: str | None = None
    subject_naming: Naming = "TopicName"
    register: bool = True
    compatibility: str | None = None


class _FileKeys(msgspec.Struct, frozen=True):
    """The keys of the file."""

    topics: dict[str, Any]
    registry: Any = None


def read_formats(path: str | Path) -> dict[str, TopicFormat]:
    """The format of each topic that the file names.

    Schema files are found beside it. Raises SettingsError for what cannot be read, an unknown key (the sentence names the nearest
    known one), a wrong value, a schema that is none, and what contradicts; it begins with the file and the key's path.
    """
    file = Path(path)
    keys = _section(_FileKeys, _load(file), f"{file}: ")
    registry = None if keys.registry is None else _registry(keys.registry, f"{file}: registry.")
    return {topic: _topic(topic, value, registry, file) for topic, value in keys.topics.items()}


def _topic(topic: str, value: object, registry: RegistrySettings | None, file: Path) -> TopicFormat:
    place = f"{file}: topics.{topic}."
    keys = _section(_TopicKeys, value, place)
    if keys.registry is not None and keys.registry is not False:
        # An address alone is enough.
        given = {"url": keys.registry} if isinstance(keys.registry, str) else keys.registry
        registry = _registry(given, f"{place}registry.")
    elif keys.registry is False:
        registry = None
    _refuse_contradictions(keys, registry, place)
    schema = None if keys.schema is None else Schema(_TYPES[keys.format], _text(file.parent / keys.schema, place))
    try:
        descriptors = protobuf.compile_schema(schema) if schema and keys.format == "protobuf" else None
        found = TopicFormat(
            topic=topic,
            format=keys.format,
            schema=schema,
            descriptors=descriptors,
            message=keys.message,
            registry=registry,
            subject=keys.subject,
            subject_naming=keys.subject_naming,
            register=keys.register,
            compatibility=keys.compatibility,
        )
        _check_schema(found)
    except SettingsError as error:
        sentence = str(error)
        raise SettingsError(f"{place}schema: {sentence[0].lower()}{sentence[1:]}") from None
    return found


def _refuse_contradictions(keys: _TopicKeys, registry: RegistrySettings | None, place: str) -> None:
    if registry is None:
        for name in ("subject", "compatibility"):
            if getattr(keys, name) is not None:
                raise SettingsError(f"{place}{name}: needs a registry, and none is named.")
        if keys.format != "json" and keys.schema is None:
            raise SettingsError(
                f"{place}schema: is missing; without a registry nothing else says how to read the values."
            )
    if keys.message is not None and keys.format != "protobuf":
        raise SettingsError(f"{place}message: names a Protobuf message, and the format is {keys.format}.")
    if keys.message is not None and keys.schema is None:
        raise SettingsError(f"{place}message: needs schema; records name their own message otherwise.")
    if keys.subject is not None and keys.subject_naming != "TopicName":
        raise SettingsError(f"{place}subject: contradicts subject_naming; give one of the two.")
    if keys.compatibility is not None and keys.compatibility not in LEVELS:
        raise SettingsError(f"{place}compatibility: is {keys.compatibility}; {_nearest(keys.compatibility, LEVELS)}")
    if keys.compatibility is not None and not keys.register:
        raise SettingsError(f"{place}compatibility: is set when a schema is registered, and register is false.")


def _check_schema(found: TopicFormat) -> None:
    """Raises SettingsError where the schema is not one of the format."""
    if found.schema is None:
        return
    if found.format == "avro":
        avro.record_name(found.schema)
    elif found.format == "protobuf":
        protobuf.chosen(protobuf.Messages(found.descriptors or b""), found.message)
    else:
        try:
            content = msgspec.json.decode(found.schema.text)
        except msgspec.DecodeError as error:
            raise SettingsError(f"The schema is no JSON: {error}.") from None
        if not isinstance(content, dict):
            raise SettingsError("The schema is JSON, but no object.")
    if found.subject is None and found.registry is not None:
        _ = found.subject_name


def check_topics(
    formats: Mapping[str, TopicFormat], file: str, read: Collection[str], written: Collection[str]
) -> None:
    """Raises SettingsError for a topic that the run neither reads nor writes, and for one that it cannot write as it is told."""
    known = (*read, *written)
    for topic, found in formats.items():
        if topic not in known:
            raise SettingsError(
                f"{file}: topics.{topic}: is no topic that this run reads or writes; {_nearest(topic, known)}"
            )
        if topic in written and found.schema is None and not found.is_plain:
            raise SettingsError(f"{file}: topics.{topic}.schema: is missing; records that are written need one.")


S = TypeVar("S", bound=msgspec.Struct)


def _section(kind: type[S], value: object, place: str) -> S:
    """`value` as a `kind`. `place` is what the sentence of an error begins with."""
    if not isinstance(value, dict):
        raise SettingsError(f"{place.rstrip('.: ')}: must be a mapping of keys to values.")
    for key in value:
        if key not in kind.__struct_fields__:
            raise SettingsError(f"{place}{key}: is not a known key; {_nearest(str(key), kind.__struct_fields__)}")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        sentence, _, where = str(error).partition(" - at `$.")
        at = f"{place}{where.rstrip('`')}: " if where else f"{place.rstrip('.: ')}: "
        known = f"; known are {', '.join(get_args(Format))}" if where.rstrip("`") == "format" else ""
        raise SettingsError(f"{at}{sentence[0].lower()}{sentence[1:]}{known}.") from None


def _registry(value: object, place: str) -> RegistrySettings:
    try:
        return _section(RegistrySettings, value, place)
    except SettingsError as error:
        sentence = str(error)
        raise (error if sentence.startswith(place.rstrip(".")) else SettingsError(place + sentence)) from None


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."


def _text(path: Path, place: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{place}schema: {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{place}schema: {path} is not text in UTF-8.") from None


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which besides refuses a key that is written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _load(path: Path) -> object:
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except OSError as error:
        raise SettingsError(f"{path}: the file cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"{path}: the file is not YAML: {' '.join(str(error).split())}.") from None
