"""What a record's bytes say: JSON, Avro or Protobuf, with or without a schema registry.

The steps of a case work on JSON. `Decode` turns a record of a topic in another format into the same record with JSON in its value,
`Encode` does the reverse for records that leave. Settings are read from a file by `read_formats`; `register_schemas` asks the
registry before a job starts. Nothing here imports Beam.
"""
