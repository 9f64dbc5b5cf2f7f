# SPDX-License-Identifier: BSD-3-Clause
"""Metadata, dependencies and entry points of ppdaemon."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# The lsst-* packages are released weekly and belong together: one floor and
# one ceiling for all of them keeps an installation within one series.
LSST = ">=30.2026.2700,<31"

VERSION = re.search(
    r"__version__ = \"(.+)\"", Path(__file__).with_name("ppdaemon").joinpath("__init__.py").read_text()
)[1]

CORE = [
    "astro-metadata-translator" + LSST,
    "astropy>=6.1",
    "click>=8.1",
    "hpgeom>=1.4",
    "lsst-ctrl-mpexec" + LSST,
    "lsst-daf-butler" + LSST,
    "lsst-pipe-base" + LSST,
    "lsst-resources" + LSST,
    "lsst-sphgeom" + LSST,
    "lsst-utils" + LSST,
    "networkx>=3.2",
    "numpy>=2.0",
    "prometheus-client>=0.20",  # imported where metrics are configured only: 13 ms, 1 MB, no thread
    "psutil>=6.0",
    "pydantic>=2.11",
    "pydantic-core",  # pydantic asks for one version of it
    "pyerfa>=2.0",
    "PyYAML>=6.0",
    "pyzmq>=26.0",
    "rich>=13.7",
    "setproctitle>=1.3",
    "SQLAlchemy>=2.0",
    "threadpoolctl>=3.5",
    "watchdog>=7.1,<8",
]
DEMO = [
    "fastavro>=1.9",
    "lsst-alert-packet" + LSST,
    "lsst-dax-apdb" + LSST,
    "lsst-images" + LSST,
    "lsst-pex-config" + LSST,
    "matplotlib>=3.9",
    "pandas>=2.2",
    "pyarrow>=17",
    "scipy>=1.14",
    "sep>=1.4",
    "starlink-pyast>=4.0",
]
POSTGRES = [
    "psycopg2-binary>=2.9"
]  # for postgresql+psycopg2: URLs; SQLAlchemy 2.1 uses psycopg 3 for bare ones
BPS = [
    "lsst-ctrl-bps" + LSST,  # the command bps of ppctl catchup run
    "lsst-ctrl-bps-parsl" + LSST,  # on this host, or at a site with Slurm
    "parsl>=2026.1",
]
KAFKA = [
    "confluent-kafka>=2.6",  # imported where Kafka is configured only: 4 MB, and threads
    "fastavro>=1.9",
]
REDIS = [
    "redis[hiredis]>=6.0",  # imported where Redis is configured only: 20 MB, 0.1 s, no thread
]
WEB = [
    "aiohttp>=3.10",  # imported by ppweb only: 38 MB, 0.15 s
    "fastavro>=1.9",
]
BRIDGE = [
    "aiohttp>=3.10",  # imported by ppbridge where HTTP is served only: 9 MB
]
OTEL = [
    "opentelemetry-api>=1.40,<2",  # imported where traces are configured only
    "opentelemetry-exporter-otlp-proto-http>=1.40,<2",
    "opentelemetry-sdk>=1.40,<2",
]
TEST = [
    "boto3>=1.34",
    "cryptography>=42",  # certificates that have expired, or are for another host
    "docutils>=0.21,<0.24",  # reads the tables of the documents
    "hypothesis>=6.100",
    "moto[server]>=5.0",  # a server of S3
    "opentelemetry-proto>=1.40,<2",  # a collector's side
    "playwright>=1.48",  # drives the chromium of the host
    "pytest>=8.2",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
]
# What these complain about changes from release to release: a clone of today
# must pass tomorrow.
DEV = [
    "import-linter==2.*",
    "mypy==2.4.*",
    "ruff==0.17.*",
    "types-psutil",
    "types-PyYAML",
]
# Libraries for classifiers, of several GB; tests/ml shows which may be preloaded.
ML = [
    "dask[array]>=2026.1",
    "duckdb>=1.4",
    "joblib>=1.5",
    "numba>=0.62",
    "numexpr>=2.14",
    "onnx>=1.19",
    "onnxruntime>=1.23",
    "polars>=1.34",
    "scikit-learn>=1.7",
    "torch>=2.9",
    "tqdm>=4.67",
]
DOC = [
    "docutils>=0.21,<0.24",
    "furo==2025.12.*",
    "numpydoc==1.11.*",
    "Sphinx==9.2.*",
]

setup(
    name="ppdaemon",
    version=VERSION,
    description="Prompt processing of telescope images on an observatory's own computers",
    long_description=Path(__file__).with_name("README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.12",
    packages=find_packages(include=["ppdaemon", "ppdaemon.*"]),
    # ctl/shipped has links to systemd/ and etc/: wheel and sdist get the files.
    package_data={
        "ppdaemon": ["cameras/*.yaml", "demo/pipelines/*.yaml", "py.typed"],
        "ppdaemon.ctl": ["shipped/*/*", "shipped/*/*/*"],
        "ppdaemon.night": ["*.css"],
        "ppdaemon.web": ["static/*"],
    },
    install_requires=CORE,
    extras_require={
        "bps": BPS,
        "demo": DEMO + WEB,
        "postgres": POSTGRES,
        "web": WEB,
        "bridge": BRIDGE,
        "kafka": KAFKA,
        "redis": REDIS,
        "otel": OTEL,
        "test": BPS + DEMO + POSTGRES + WEB + BRIDGE + KAFKA + REDIS + OTEL + TEST,
        "dev": BPS + DEMO + POSTGRES + WEB + BRIDGE + KAFKA + REDIS + OTEL + TEST + DEV,
        "doc": DEMO + DOC,
        "ml": BPS + DEMO + POSTGRES + WEB + BRIDGE + KAFKA + REDIS + OTEL + TEST + ML,
    },
    entry_points={
        "console_scripts": [
            "ppdaemon = ppdaemon.node.app:main",
            "pprelay = ppdaemon.relay.app:main",
            "ppbridge = ppdaemon.bridge.app:main",
            "ppctl = ppdaemon.ctl.cli:main",
            "send_visit = ppdaemon.ctl.send:main",
            "ppweb = ppdaemon.web.app:main",
        ]
    },
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Astronomy",
    ],
)
