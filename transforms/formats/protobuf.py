"""Protobuf as JSON and back, by Google's `protobuf`: its JSON mapping (ProtoJSON), with the field names of the schema.

A schema's text is compiled by protoc, which `grpcio-tools` brings, in a process of its own. A registry may hold a compiled file in
base64 instead, as Confluent's Python client registers it.
"""

from __future__ import annotations

import base64
import binascii
import re
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.message import DecodeError

from transforms.errors import BadEvent, BadReply, SettingsError
from transforms.formats.registry import Schema
from transforms.formats.wire import Framed, read_path, read_ref

COMPILE_TIMEOUT_S = 30.0
"""How long protoc may take for one schema."""

_MAIN = "farcall_schema.proto"


class Messages:
    """The messages of one compiled schema file."""

    def __init__(self, compiled: bytes) -> None:
        files = descriptor_pb2.FileDescriptorSet.FromString(compiled)
        pool = descriptor_pool.DescriptorPool()
        for file in files.file:
            pool.Add(file)  # type: ignore[no-untyped-call]
        self._file: FileDescriptor = pool.FindFileByName(files.file[-1].name)
        self._by_index = [self._file.message_types_by_name[one.name] for one in files.file[-1].message_type]

    def at(self, path: tuple[int, ...]) -> Descriptor:
        """The message at a path of the schema file. Raises BadEvent ``format-schema`` where there is none."""
        messages = self._by_index
        for number in path:
            if not 0 <= number < len(messages):
                raise BadEvent(
                    "format-schema", f"The schema has no message at the path {list(path)} that the record names."
                )
            found = messages[number]
            messages = list(found.nested_types)
        return found

    def path_of(self, descriptor: Descriptor) -> tuple[int, ...]:
        """Where a message stands in the file: the inverse of `at`."""
        above = descriptor.containing_type
        beside = self._by_index if above is None else list(above.nested_types)
        number = [one.full_name for one in beside].index(descriptor.full_name)
        return (number,) if above is None else (*self.path_of(above), number)

    def named(self, name: str) -> Descriptor | None:
        """The message of this name, with or without its package; None where there is none."""
        package = self._file.package
        words = name.removeprefix(f"{package}.").split(".") if package else name.split(".")
        found = self._file.message_types_by_name.get(words[0])
        for word in words[1:]:
            found = None if found is None else found.nested_types_by_name.get(word)
        return found

    def names(self) -> list[str]:
        """The full names of the messages at the top of the file."""
        return [one.full_name for one in self._by_index]


def compile_schema(schema: Schema) -> bytes:
    """A ``FileDescriptorSet`` with the schema's file last, behind what it imports.

    Raises SettingsError where it is no schema, or imports what is not among its references.
    """
    with tempfile.TemporaryDirectory(prefix="farcall-proto-") as folder:
        written = Path(folder)
        ready = [one for one in (_compiled(schema.text, _MAIN),) if one is not None]
        _write_references(schema, written)
        if ready:
            return _with_imports(ready[0], written)
        (written / _MAIN).write_text(schema.text, encoding="utf-8")
        return _protoc(written, _MAIN)


def _compiled(text: str, name: str) -> descriptor_pb2.FileDescriptorProto | None:
    """The file, where `text` is base64 of a compiled one."""
    if not re.fullmatch(r"[A-Za-z0-9+/=\s]+", text):
        return None
    try:
        file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text))
    except (binascii.Error, DecodeError):
        return None
    file.name = name
    return file


def _with_imports(file: descriptor_pb2.FileDescriptorProto, folder: Path) -> bytes:
    """The set of a compiled file and what it imports, which protoc finds among the references."""
    importer = "\n".join(['syntax = "proto3";', *(f'import "{name}";' for name in file.dependency)])
    (folder / "imports.proto").write_text(importer, encoding="utf-8")
    files = descriptor_pb2.FileDescriptorSet.FromString(_protoc(folder, "imports.proto"))
    del files.file[-1]
    files.file.append(file)
    return bytes(files.SerializeToString())


def _write_references(schema: Schema, folder: Path) -> None:
    for name, below in schema.references:
        at = (folder / name).resolve()
        if not at.is_relative_to(folder.resolve()):
            raise SettingsError(f"The schema refers to {name}, which is no name of a file beside it.")
        if _compiled(below.text, name) is not None:
            raise SettingsError(f"The schema refers to {name}, which is compiled; only text can be referred to.")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_text(below.text, encoding="utf-8")
        _write_references(below, folder)


def _protoc(folder: Path, name: str) -> bytes:
    out = folder / "descriptors.bin"
    known = str(resources.files("grpc_tools") / "_proto")
    words = [f"-I{folder}", f"-I{known}", "--include_imports", f"--descriptor_set_out={out}", name]
    done = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=COMPILE_TIMEOUT_S,
        check=False,
    )
    if done.returncode or not out.exists():
        lines = [
            line for line in done.stderr.replace(_MAIN, "the schema").splitlines() if "warning" not in line.lower()
        ]
        raise SettingsError(f"The schema is no Protobuf: {' '.join(' '.join(lines).split())[:500] or 'protoc failed'}")
    return out.read_bytes()


class ProtobufReader:
    """Reads payloads of any message a record names, as the reader's own message where there is one.

    Evolution is Protobuf's own: fields are matched by number, unknown ones are dropped, and those that are not there have their
    default.
    """

    def __init__(self, compiled: bytes | None, message: str | None) -> None:
        self._own = None if compiled is None else chosen(Messages(compiled), message)
        self._messages: dict[Schema, Messages] = {}

    def read(self, framed: Framed, writer: Schema | None) -> Any:
        """The payload as `msgspec` can encode it. Without `writer` there is no path before it, and it is the reader's message.

        Raises BadEvent: ``format-schema`` where the writer's schema is no Protobuf or lacks the message, ``format-resolution`` where
        the message is not the reader's, ``format-data`` where the payload is not as the schema says.
        """
        if writer is None:
            descriptor, payload = self._own, framed.payload
        else:
            written, payload = _written(self._compiled(writer), framed)
            descriptor = self._resolved(written)
        assert descriptor is not None  # noqa: S101 - the settings name a schema or a registry
        try:
            message = message_factory.GetMessageClass(descriptor).FromString(payload)
            return json_format.MessageToDict(
                message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
        except (DecodeError, json_format.Error, ValueError, RecursionError) as error:
            words = " ".join(str(error).split())[:300]
            raise BadEvent("format-data", f"The payload is not the Protobuf that its schema says: {words}.") from None

    def _resolved(self, written: Descriptor) -> Descriptor:
        if self._own is None or self._own.full_name == written.full_name:
            return self._own or written
        raise BadEvent(
            "format-resolution",
            f"The record is a {written.full_name}, and the topic's schema reads {self._own.full_name}.",
        )

    def _compiled(self, schema: Schema) -> Messages:
        if schema not in self._messages:
            if schema.type != "PROTOBUF":
                raise BadEvent("format-schema", f"The topic is Protobuf, but the record's schema is {schema.type}.")
            try:
                self._messages[schema] = Messages(compile_schema(schema))
            except SettingsError as error:
                raise BadEvent("format-schema", str(error)) from None
        return self._messages[schema]


def _written(messages: Messages, framed: Framed) -> tuple[Descriptor, bytes]:
    """The message that was written, and its bytes."""
    if framed.path is not None:
        path, _ = read_path(framed.path)
        return messages.at(path), framed.payload
    if framed.pathless:
        found = messages.at((0,)) if framed.message is None else messages.named(framed.message)
        if found is None:
            raise BadEvent("format-schema", f"The record's schema has no message {framed.message}.")
        return found, framed.payload
    ref = read_ref(framed.payload)
    if ref is not None:
        found = messages.named(ref[0])
        if found is not None:
            return found, ref[1]
    path, payload = read_path(framed.payload)
    return messages.at(path), payload


def chosen(messages: Messages, name: str | None) -> Descriptor:
    """The message of this name, or the only one of the file. Raises SettingsError where there is none, or a choice is left."""
    names = messages.names()
    if name is None and len(names) != 1:
        raise SettingsError(f"message is missing: the schema has {', '.join(names) or 'no message'}.")
    found = messages.named(names[0] if name is None else name)
    if found is None:
        raise SettingsError(f"message is {name}, which the schema does not have; it has {', '.join(names)}.")
    return found


class ProtobufWriter:
    """Writes payloads of one message. A field that the message does not have is refused, not dropped."""

    def __init__(self, compiled: bytes, message: str | None) -> None:
        messages = Messages(compiled)
        descriptor = chosen(messages, message)
        self.path = messages.path_of(descriptor)
        self._class = message_factory.GetMessageClass(descriptor)

    def write(self, value: Any) -> bytes:
        """The payload. Raises BadReply ``format-data`` for a value that is not as the message says."""
        try:
            return bytes(json_format.ParseDict(value, self._class()).SerializeToString(deterministic=True))
        except (json_format.Error, ValueError, TypeError, RecursionError) as error:
            words = " ".join(str(error).split())[:300]
            raise BadReply("format-data", f"The record does not fit the topic's Protobuf message: {words}.") from None
