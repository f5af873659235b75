"""The local stack: Kafka, Flink, Beam's Java parts, Python workers and a model server as plain processes."""
