# SPDX-License-Identifier: BSD-3-Clause
"""For ``ppctl import-config``: from the configuration of Rubin Observatory's service for prompt
processing (lsst-dm/prompt_processing and next_visit_fan_out) to ``ppdaemon.yaml``, ``pprelay.yaml``, and, if
raws are in a bucket, ``ppbridge.yaml``.

What the service is told by environment variables is in `CARRIED` and `NOT_CARRIED`, by their names in the
service of March 2026. Passwords and tokens are not copied: the files name the variables.
"""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ppdaemon.camera import load_camera
from ppdaemon.ctl.environmentfile import read_environment
from ppdaemon.detectorlist import ranges
from ppdaemon.errors import ConfigError, StateUnusable

__all__ = ("CARRIED", "NOT_CARRIED", "Import", "import_files", "imported")

INSTRUMENT_CLASSES = {
    "LATISS": "lsst.obs.lsst.Latiss",
    "LSSTCam": "lsst.obs.lsst.LsstCam",
    "LSSTCam-imSim": "lsst.obs.lsst.LsstCamImSim",
    "LSSTCamSim": "lsst.obs.lsst.LsstCamSim",
    "LSSTComCam": "lsst.obs.lsst.LsstComCam",
    "LSSTComCamSim": "lsst.obs.lsst.LsstComCamSim",
}
"""Classes of lsst/obs_lsst by the short name of their instrument."""
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
# Others may be lines of a value, such as of a secret key.
_NAME = re.compile("[A-Z_][A-Z0-9_]*")
_PASSWORD = re.compile(r"(://[^/@:\s]*):[^/@\s]+@")


@dataclass
class Import:
    """The files while they are made, as mappings, and what a person must know about them."""

    instrument: str
    detectors: Mapping[str, str]
    """Detectors of each instrument, from the map of the fan-out."""
    variables: Mapping[str, str]
    node: dict[str, Any] = field(default_factory=dict)
    relay: dict[str, Any] = field(default_factory=dict)
    bridge: dict[str, Any] = field(default_factory=dict)
    """Empty if raws are in no bucket."""
    notes: dict[str, str] = field(default_factory=dict)
    """By variable: why it has no key here, or what to do beside."""
    relay_notes: dict[str, str] = field(default_factory=dict)
    """The same of the fan-out's variables."""

    def set(self, key: str, value: Any) -> None:
        """Set a key of ``ppdaemon.yaml``, such as ``butler.central``."""
        *folders, last = key.split(".")
        part = self.node
        for name in folders:
            part = part.setdefault(name, {})
        part[last] = value


def _to(key: str, convert: Callable[[str], Any] = str) -> Callable[[Import, str, str], None]:
    """Return what copies a variable to a key of ``ppdaemon.yaml``."""
    return lambda made, name, value: made.set(key, convert(value))


def _listed(value: str) -> Any:
    found = yaml.safe_load(value)
    if not isinstance(found, list):
        raise ValueError("is not a list in YAML")
    return found


def _expiry(made: Import, _: str, value: str) -> None:
    made.set("node.expiry_s", float(value))
    made.relay["expiry_s"] = float(value)


def _raws(made: Import, name: str, value: str) -> None:
    made.set("arrivals.remote", [{"uri": f"s3://{value}", "layout": "lsst"}])
    made.set("arrivals.bridges", ["tcp://127.0.0.1:5581"])
    made.bridge |= {"state_dir": "/var/lib/ppdaemon/bridge", "control": "/run/ppbridge/control.sock"}
    brokers, topic = (made.variables.get(each, "") for each in ("KAFKA_CLUSTER", "BUCKET_TOPIC"))
    text = "raws are read from the bucket when a notice names them, which ppbridge passes on: "
    if brokers and topic:
        # The first start of the group; the bridge alone would read all that the topic has.
        reset = made.variables.get("BUCKET_NOTIFICATION_KAFKA_OFFSET_RESET") or "latest"
        made.bridge["kafka"] = {
            "brokers": brokers,
            "topics": [topic],
            "options": {"auto.offset.reset": reset},
        }
        text += "it reads them from BUCKET_TOPIC in a group of its own, and the service may run beside it; "
    else:
        text += "without KAFKA_CLUSTER and BUCKET_TOPIC, let the bucket send them to it by HTTP; "
    made.notes[name] = f"{text}if this host sees the files, use arrivals.roots instead"


def _restarts(made: Import, name: str, value: str) -> None:
    if int(value) > 0:
        made.set("workers.recycle_visits", int(value))
    else:
        made.notes[name] = "0: workers were never replaced; here they are after workers.recycle_visits"


def _apdb(made: Import, name: str, value: str) -> None:
    made.set("engine.no_return", ["lsst.ap.association.DiaPipelineTask"])
    made.set("pipelines.overrides", {"parameters:apdb_config": value})
    made.notes[name] = (
        "is a parameter of the pipelines; engine.no_return names the task that writes alert database and "
        "alert stream. Check both against your pipelines, and see engine.apdb and apdb_tasks"
    )


def _writer(made: Import, name: str, value: str) -> None:
    if value != "1":
        return
    brokers, topic = (made.variables.get(f"BUTLER_WRITER_KAFKA_{each}", "") for each in ("CLUSTER", "TOPIC"))
    options = {
        "security.protocol": "sasl_plaintext",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "${BUTLER_WRITER_KAFKA_USERNAME}",
        "sasl.password": "${BUTLER_WRITER_KAFKA_PASSWORD}",
    }
    made.set("export.writer", {"to": f"kafka://{brokers}/{topic}", "options": options})
    made.notes[name] = (
        "export.writer: BUTLER_WRITER_KAFKA_USERNAME and _PASSWORD must be in the environment of ppdaemon"
    )


def _sasquatch(made: Import, name: str, value: str) -> None:
    if not value:
        return
    namespace = made.variables.get("DAF_BUTLER_SASQUATCH_NAMESPACE", "lsst.prompt")
    publication = {"what": ".*", "to": value, "format": "avro", "namespace": namespace}
    if made.variables.get("SASQUATCH_TOKEN"):
        publication["token"] = "/etc/ppdaemon/keys/sasquatch"
        made.notes[name] = "publish: write SASQUATCH_TOKEN to the file that token names, mode 0600"
    made.set("publish", [publication])


def _local(made: Import, name: str, value: str) -> None:
    made.notes[name] = f"copy the content of {value} to butler.local"


def _redis(made: Import, name: str, value: str) -> None:
    made.set("redis.url", f"redis://{value}" if re.search(r":\d+$", value) else f"redis://{value}:6379")
    made.set("relay.address", None)
    made.notes[name] = (
        "visits come from this stream, not from pprelay. Connections to another host need TLS (rediss:// in"
        " redis.url) or security.insecure: true. Hosts in the service's group share visits with it, and need"
        " node.instruments with all detectors of the stream; to process everything beside it, set"
        " shadow: {enabled: true} and another redis.group"
    )
    made.relay_notes[name] = "ppdaemon.yaml takes visits from Redis: then no relay is needed"


def _levels(made: Import, name: str, value: str) -> None:
    pairs = [each.partition("=")[::2] for each in value.split()]
    refused = [f"{logger}={level}" for logger, level in pairs if level not in LEVELS]
    if refused:
        made.notes[name] = f"{' '.join(refused)}: levels here are {', '.join(LEVELS)}"
    levels = {logger: level for logger, level in pairs if level in LEVELS}
    if root := levels.pop(".", ""):
        made.set("log.level", root)
    if levels:
        made.set("log.levels", levels)


CARRIED: Mapping[str, Callable[[Import, str, str], None]] = {
    "CENTRAL_REPO": _to("butler.central"),
    "CONFIG_APDB": _apdb,
    "EXPORT_TYPE_REGEXP": _to("export.types", _listed),
    "IMAGE_BUCKET": _raws,
    "IMAGE_TIMEOUT": _to("arrivals.image_timeout_s", float),
    "LOCAL_REPO_CONFIG": _local,
    "MAIN_PIPELINES_CONFIG": _to("pipelines.main", _listed),
    "MESSAGE_EXPIRATION": _expiry,
    "PRELOAD_PADDING": _to("preload.padding_arcsec", float),
    "PREPROCESSING_PIPELINES_CONFIG": _to("pipelines.preprocessing", _listed),
    "READ_CENTRAL_REPO": _to("butler.read"),
    "REDIS_STREAM_CONSUMER_GROUP": _to("redis.group"),
    "REDIS_STREAM_HOST": _redis,
    "REDIS_STREAM_NAME": _to("redis.streams", lambda value: [value]),
    "SASQUATCH_URL": _sasquatch,
    "SERVICE_LOG_LEVELS": _levels,
    "SKYMAP": _to("butler.skymap"),
    "USE_KAFKA_BUTLER_WRITER": _writer,
    "WORKER_RESTART_FREQ": _restarts,
    "WORKER_TIMEOUT": _to("workers.times.run_s", float),
}
"""What copies each variable. IMAGE_TIMEOUT is here, too, the time after twice the announced duration."""


def _fan_out_kafka(made: Import, variables: Mapping[str, str]) -> None:
    """Set where the relay reads events from; the fan-out has read the same topic."""
    missing = [name for name in ("KAFKA_CLUSTER", "NEXT_VISIT_TOPIC") if not variables.get(name)]
    if missing:
        raise ConfigError([f"--fan-out-env: {', '.join(missing)} missing: is it the fan-out's environment?"])
    topic = variables["NEXT_VISIT_TOPIC"]
    topics = [topic]
    if topic.endswith("nextVisit"):
        topics.append(f"{topic}Canceled")
        made.relay_notes["NEXT_VISIT_TOPIC"] = (
            "kafka.topics has the topic of cancellations, too, which the fan-out did not read: the user must"
            " have the right to read both"
        )
    else:
        made.relay_notes["NEXT_VISIT_TOPIC"] = "add the topic of nextVisitCanceled to kafka.topics"
    names = {"SECURITY_PROTOCOL": "security.protocol", "SASL_MECHANISM": "sasl.mechanism"}
    options = {key: variables[name] for name, key in names.items() if variables.get(name)}
    if "SASL_USERNAME" in variables:
        options |= {"sasl.username": "${SASL_USERNAME}", "sasl.password": "${SASL_PASSWORD}"}
        made.relay_notes["SASL_PASSWORD"] = (
            "SASL_USERNAME and SASL_PASSWORD must be in the environment of pprelay"
        )
    registry = variables.get("KAFKA_SCHEMA_REGISTRY_URL", "")
    shown = re.sub(r"://[^/@\s]*@", "://", registry)
    if shown != registry:
        made.relay_notes["KAFKA_SCHEMA_REGISTRY_URL"] = (
            "write its user to kafka.registry_user, and its password to a file, kafka.registry_password"
        )
    made.relay["kafka"] = {
        "brokers": variables["KAFKA_CLUSTER"],
        "topics": topics,
        "registry": shown or None,
        "options": options,
    }
    made.relay_notes["CONSUMER_GROUP"] = (
        "the relay commits offsets as ppdaemon-NAME, and needs the right to read with this group; the fan-out"
        " may run beside it"
    )
    if expiry := variables.get("MESSAGE_EXPIRATION"):
        made.relay["expiry_s"] = float(expiry)


_EVENTS = (
    "visits come from pprelay, over ZeroMQ, which reads Kafka (give the fan-out's environment as"
    " --fan-out-env), or from the service's stream in Redis"
)
NOT_CARRIED: Mapping[str, str] = {
    "CENTRAL_IERS_CACHE": "astropy's tables of the Earth's rotation are those that are installed",
    "CONSUMER_GROUP": _EVENTS,
    "DEBUG_EXPORT_OUTPUTS": "0: outputs were not exported; here export.types decides which are",
    "FANNED_OUT_MSG_LISTEN_TIMEOUT": _EVENTS,
    "INSTRUMENT_CONFIG_FILE": "give this file as --fan-out",
    "KAFKA_SCHEMA_REGISTRY_URL": _EVENTS,
    "LOCAL_REPOS": "workers' repos are on a RAM disk, node.ramdisk",
    "LOCAL_REPO_CACHE_SIZE": "all workers of a host share calibrations and templates: preload.cache_max",
    "MAX_FAN_OUT_MESSAGES": "the relay waits for no node",
    "NEXT_VISIT_TOPIC": _EVENTS,
    "OFFSET": _EVENTS,
    "PLATFORM": _EVENTS,
    "RAW_MICROSERVICE": "raws are found by arrivals: files, or notices of a bucket",
    "REDIS_RETRY_DELAY": _EVENTS,
    "REPO_RETRY_DELAY": "exports are tried again after export.retry_s",
    "RETRY_KNATIVE_REQUESTS": _EVENTS,
    "S3_ENDPOINT_URL": "set it in the environment of ppdaemon, in a drop-in of its unit",
    "SUPPORTED_INSTRUMENTS": "the relay takes the instruments of its configuration",
    "WORKER_COUNT": "the number of workers is workers.max; ppctl size calculates it",
    "WORKER_GRACE_PERIOD": "running visits may continue at a stop for workers.times.stop_s",
}
"""Why a variable of the service has no key here."""
# Used by others of `CARRIED`.
_PARTS = frozenset(
    {
        "BUCKET_NOTIFICATION_KAFKA_OFFSET_RESET",
        "BUCKET_TOPIC",
        "BUTLER_WRITER_KAFKA_CLUSTER",
        "BUTLER_WRITER_KAFKA_PASSWORD",
        "BUTLER_WRITER_KAFKA_TOPIC",
        "BUTLER_WRITER_KAFKA_USERNAME",
        "DAF_BUTLER_SASQUATCH_NAMESPACE",
        "KAFKA_CLUSTER",
        "RUBIN_INSTRUMENT",
        "SASQUATCH_TOKEN",
    }
)


_SWITCHES = {True: True, False: False}


def _number(value: Any) -> int:
    number = int(str(value))
    if number < 0:
        raise ValueError(value)
    return number


def _fan_out(document: Any) -> dict[str, str]:
    """Return the switched-on detectors of each instrument of a fan-out's map."""
    try:
        maps = document["detectors"]
        return {
            str(name): ranges(_number(number) for number, on in switches.items() if _SWITCHES[on])
            for name, switches in maps.items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(["no map of detectors, such as detectors: {LATISS: {0: true}}"]) from error


def imported(
    variables: Mapping[str, str], fan_out: Any = None, fan_out_variables: Mapping[str, str] | None = None
) -> Import:
    """Return both configurations.

    Parameters
    ----------
    variables : `~collections.abc.Mapping` [`str`, `str`]
        The service's environment.
    fan_out : `dict`, optional
        The content of the fan-out's ``INSTRUMENT_CONFIG_FILE``.
    fan_out_variables : `~collections.abc.Mapping` [`str`, `str`], optional
        The fan-out's environment, which has the observatory's Kafka topic.

    Raises
    ------
    ppdaemon.errors.ConfigError
        Raised with all values that cannot be used.
    """
    detectors = _fan_out(fan_out) if fan_out is not None else {}
    instrument = variables.get("RUBIN_INSTRUMENT", "")
    if not instrument:
        raise ConfigError(["RUBIN_INSTRUMENT is missing: which instrument does the service process?"])
    made = Import(instrument, detectors, variables)
    _defaults(made)
    problems = []
    for name, value in variables.items():
        if name in CARRIED and value:
            shown = _PASSWORD.sub(rf"\1:${{{name}_PASSWORD}}@", value)
            try:
                CARRIED[name](made, name, shown)
            except (ValueError, yaml.YAMLError) as error:
                problems.append(f"{name}: {error}")
            if shown != value:
                made.notes[f"{name}_PASSWORD"] = (
                    f"write the password of {name} to the environment of ppdaemon"
                )
        elif name in CARRIED:
            made.notes[name] = "blank, or its value is in a secret"
        elif name in NOT_CARRIED:
            made.notes[name] = NOT_CARRIED[name]
    if fan_out_variables is not None:
        try:
            _fan_out_kafka(made, fan_out_variables)
        except ValueError as error:
            problems.append(f"--fan-out-env: MESSAGE_EXPIRATION: {error}")
    if problems:
        raise ConfigError(problems)
    return made


def _defaults(made: Import) -> None:
    """Set what the service is not told by variables."""
    name = made.instrument
    if made.detectors and not made.detectors.get(name):
        raise ConfigError([f"--fan-out: no detector of {name} is switched on"])
    listed = made.detectors.get(name) or _all_detectors(made)
    made.set("node.name", "node1")
    made.set("node.state_dir", "/var/lib/ppdaemon/node")
    made.set("node.ramdisk", "/run/ppramdisk")
    made.set("node.control", "/run/ppdaemon/control.sock")
    made.set("node.instruments", {name: listed})
    made.set("relay.address", "tcp://127.0.0.1:5571")
    made.set("arrivals.roots", [])
    made.set("pipelines.preprocessing", [])
    made.set("butler.instrument_class", {name: INSTRUMENT_CLASSES.get(name, f"{name}: name its class here")})
    instruments = made.detectors or {name: listed}
    made.relay |= {
        "state_dir": "/var/lib/ppdaemon/relay",
        "control": "/run/pprelay/control.sock",
        "instruments": {each: {"detectors": numbers} for each, numbers in instruments.items() if numbers},
    }


def _all_detectors(made: Import) -> str:
    try:
        numbers = ranges(load_camera(made.instrument).detectors)
    except ConfigError as error:
        raise ConfigError([f"RUBIN_INSTRUMENT: {error}; give its detectors as --fan-out"]) from error
    made.notes["RUBIN_INSTRUMENT"] = f"without --fan-out, all {numbers} of the camera are processed"
    return numbers


def _text(program: str, values: Mapping[str, Any], notes: Mapping[str, str], unknown: list[str]) -> str:
    lines = [f"# Made by ppctl import-config. Check it with: {program} check-config --config FILE"]
    if notes:
        lines.append("# Variables that have no key here, or need something beside:")
        for name, text in sorted(notes.items()):
            lines += textwrap.wrap(
                f"{name}: {text}",
                100,
                initial_indent="#   ",
                subsequent_indent="#     ",
                break_on_hyphens=False,
            )
    if unknown:
        lines.append("# Variables that are not those of the service: " + ", ".join(unknown))
    return "\n".join([*lines, yaml.safe_dump(values, sort_keys=False, width=100, allow_unicode=True)])


def import_files(
    environment: Path, fan_out: Path | None, fan_out_env: Path | None, output: Path
) -> Iterator[Path]:
    """Write the files into a folder, and yield the path of each that is written."""
    variables = _named(environment, lambda: read_environment(environment.read_text(encoding="utf-8-sig")))
    document = (
        _named(fan_out, lambda: yaml.safe_load(fan_out.read_text(encoding="utf-8")) or {})
        if fan_out
        else None
    )
    fanning = (
        _named(fan_out_env, lambda: read_environment(fan_out_env.read_text(encoding="utf-8-sig")))
        if fan_out_env
        else None
    )
    made = imported(variables, document, fanning)
    unknown = sorted(filter(_NAME.fullmatch, variables.keys() - {*CARRIED, *NOT_CARRIED, *_PARTS}))
    files = {
        output / "ppdaemon.yaml": _text("ppdaemon", made.node, made.notes, unknown),
        output / "pprelay.yaml": _text("pprelay", made.relay, made.relay_notes, []),
    }
    if made.bridge:
        files[output / "ppbridge.yaml"] = _text("ppbridge", made.bridge, {}, [])
    if there := [str(path) for path in files if path.exists()]:
        raise StateUnusable(f"{' and '.join(there)}: there already; name another folder with --output")
    for path, text in files.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise StateUnusable(f"{path} cannot be written: {error.strerror}") from error
        yield path


def _named[T](path: Path, read: Callable[[], T]) -> T:
    """Read a file; an error names it."""
    try:
        return read()
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError, ConfigError) as error:
        raise ConfigError([f"{path}: {error}"]) from error
