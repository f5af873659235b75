"""Schemas of topics that are written, made known to their registry before a job starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from transforms.errors import SettingsError, Unavailable
from transforms.formats.registry import OpenRegistry, Registry, shared_registry
from transforms.formats.settings import TopicFormat


def register_schemas(
    formats: Mapping[str, TopicFormat], written: Collection[str], open_registry: OpenRegistry = shared_registry
) -> dict[str, TopicFormat]:
    """The formats, with the id of each schema that is written.

    A schema that its subject has is looked up, and nothing changes. Another is checked against the subject's level of compatibility
    and only then registered; the first of a subject sets that level where the settings name one. The registry of a topic that is only
    read is asked whether it is there. Raises SettingsError where a schema is incompatible, is not there and must not be registered, or
    where a registry does not answer: all before a job starts.
    """
    result = dict(formats)
    for topic, found in formats.items():
        # Of JSON only the prefix is taken off, which needs no schema.
        if found.registry is None or (found.format == "json" and found.schema is None):
            continue
        try:
            registry = open_registry(found.registry)
            if topic in written and found.schema is not None:
                result[topic] = msgspec.structs.replace(found, schema_id=_number(registry, found))
            else:
                registry.check()
        except Unavailable as error:
            raise SettingsError(
                f"--formats: the topic {topic} needs its registry. {error} See that it runs, and that the file has its address."
            ) from None
    return result


def _number(registry: Registry, found: TopicFormat) -> int:
    assert found.schema is not None  # noqa: S101 - as above
    subject = found.subject_name
    number = registry.id_of(subject, found.schema)
    if number is not None:
        return number
    if not found.register:
        raise SettingsError(
            f"--formats: the subject {subject} does not have the schema of {found.topic}; register it first."
        )
    if found.compatibility is not None and not registry.has_subject(subject):
        number = registry.register(subject, found.schema)
        registry.set_level(subject, found.compatibility)
        return number
    compatible, why = registry.is_compatible(subject, found.schema)
    if not compatible:
        raise SettingsError(
            f"--formats: the schema of {found.topic} is not compatible with the latest of the subject {subject}"
            f"{': ' + why if why else ''}; nothing was registered."
        )
    return registry.register(subject, found.schema)
