# SPDX-License-Identifier: BSD-3-Clause
"""Types of configuration values with their own notation, such as ``8GB`` and ``0-8,12``, and the
base of the parts of a configuration.
"""

import grp
import importlib.util
import ipaddress
import pwd
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic
from pydantic_core import InitErrorDetails, PydanticCustomError

from ppdaemon.detectorlist import parse_detector_list, unique
from ppdaemon.keyfiles import read_allow_list, read_key_pair, read_public_key
from ppdaemon.passwordfile import read_password
from ppdaemon.thishost import host_context
from ppdaemon.wire import Model
from ppdaemon.yamlfile import KeyPath, did_you_mean

__all__ = (
    "Address",
    "CollectionTemplate",
    "CollectorUrl",
    "ConfigPart",
    "ConnectAddress",
    "Detectors",
    "FileName",
    "GroupId",
    "HttpAddress",
    "IngestKind",
    "KeyFolder",
    "LogLevel",
    "LoggerName",
    "PasswordFile",
    "PublicKeyFile",
    "Rate",
    "SOCKET_PATH_MAX",
    "SecretPath",
    "Seconds",
    "SecretKeyFile",
    "Size",
    "SocketPath",
    "UserId",
    "VisitGrouping",
    "WritableFolder",
    "is_local",
    "kafka_conflicts",
    "needs_kafka",
    "valid_values",
    "regular_expressions",
)

_UNITS = {"B": 1, "KB": 1000} | {
    unit: base**power
    for base, units in ((1000, ("kB", "MB", "GB", "TB")), (1024, ("KiB", "MiB", "GiB", "TiB")))
    for power, unit in enumerate(units, 1)
}
"""Bytes. KB is a common spelling of kB; a lone K, M or G, which some programs count in powers of 1024, is
refused."""
_SIZE = re.compile(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})")


def _size(value: Any) -> Any:
    """Convert ``8GB`` or ``8GiB`` to a number of bytes."""
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None:
            raise ValueError(
                f"{value!r} is not a size; units are B, kB, MB, GB, TB (powers of 1000) and KiB, MiB, GiB, "
                "TiB (of 1024)"
            )
        return round(float(match[1]) * _UNITS[match[2]])
    return value


def _detectors(value: Any) -> Any:
    """Convert ``0-8,12``, or a mapping such as ``{0: true, 1-8: false}``, to detector ids."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, dict):
        switches = [(_detectors(str(key)), switch) for key, switch in value.items()]
        if wrong := [switch for _, switch in switches if switch not in (True, False)]:
            raise ValueError(f"{wrong[0]!r} is not a switch of a detector; write true or false")
        unique(tuple(number for numbers, _ in switches for number in numbers))
        return tuple(number for numbers, switch in switches if switch for number in numbers)
    if isinstance(value, str):
        return parse_detector_list(value)
    return value


def _no_switch(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{value} is not a detector; write for instance 0-8,12, or {{0: true, 1: false}}")
    return value


SOCKET_PATH_MAX = 107
"""Longest path of a unix socket, bytes: ``sun_path`` of unix(7) without its last zero."""


def regular_expressions(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return regular expressions, or raise `ValueError` if one of them is none."""
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return value


def _address(value: str) -> str:
    if not re.fullmatch(r"tcp://.+:(\d+|\*)|ipc://.+", value):
        raise ValueError(f"{value} is not an address: write tcp://HOST:PORT or ipc://PATH")
    port = value.rpartition(":")[2]
    if value.startswith("tcp://") and port != "*" and not 1 <= int(port) <= 65535:
        raise ValueError(f"port {port} of {value} is not in 1-65535")
    return value


def _connectable(value: str) -> str:
    if value.startswith("tcp://") and "*" in value:
        raise ValueError(f"{value}: name the host and the port to connect to instead of *")
    return value


def _collector_url(value: str) -> str:
    """Check the address of a collector of traces, and that this installation can send to one."""
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value} is not an address: write for instance http://127.0.0.1:4318/v1/traces")
    try:
        found = importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise ValueError("traces need the extra otel: pip install 'ppdaemon[otel]'")
    return value


def _redis_url(value: str) -> str:
    parts = urlsplit(value)
    try:
        valid = bool(parts.path if parts.scheme == "unix" else parts.hostname and parts.port)
    except ValueError:  # the port
        valid = False
    if parts.scheme not in ("redis", "rediss", "unix") or not valid:
        raise ValueError(f"{value} is not an address: write redis://HOST:PORT, rediss:// or unix:///PATH")
    if "@" in value:
        raise ValueError("a password in the address would be shown: use the keys user and password")
    return value


def is_local_redis(url: str) -> bool:
    """Return whether a connection to a Redis server stays on this host or is encrypted."""
    parts = urlsplit(url)
    return parts.scheme != "redis" or is_local(f"tcp://{parts.netloc}")


def _http_address(value: str) -> str:
    match = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.-]+):([0-9]+)", value)
    if match is None:
        raise ValueError(f"{value} is not an address: write HOST:PORT, such as 127.0.0.1:9464")
    if not 1 <= int(match[1]) <= 65535:
        raise ValueError(f"port {match[1]} of {value} is not in 1-65535")
    return value


def is_local(address: str) -> bool:
    """Return whether only this host can connect to an address, or be connected with it."""
    if not address.startswith("tcp://"):
        return True
    # After a semicolon: the part before it is the address of this end.
    host = address.removeprefix("tcp://").rpartition(";")[2].rpartition(":")[0]
    try:
        return host in ("localhost", "lo") or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # another name, or a pattern such as *


def _template(value: str) -> str:
    try:
        value.format(instrument="")
    except (LookupError, ValueError, AttributeError):
        raise ValueError(f"{value}: only {{instrument}} is replaced") from None
    return value


def _user_id(value: Any) -> Any:
    """Convert the name of a user to its number."""
    try:
        return pwd.getpwnam(value).pw_uid if isinstance(value, str) else value
    except KeyError:
        raise ValueError(f"this host has no user {value}") from None


def _group_id(value: Any) -> Any:
    """Convert the name of a group to its number."""
    try:
        return grp.getgrnam(value).gr_gid if isinstance(value, str) else value
    except KeyError:
        raise ValueError(f"this host has no group {value}") from None


def _socket_path(value: Path, info: pydantic.ValidationInfo) -> Path:
    if host_context(info) is None:
        return value
    if not value.is_absolute():
        raise ValueError(f"{value} is relative; write an absolute path")
    if (length := len(str(value).encode())) > SOCKET_PATH_MAX:
        raise ValueError(f"{value}: {length} bytes, a unix socket's path has at most {SOCKET_PATH_MAX}")
    return value


def _secret_key(value: Path, info: pydantic.ValidationInfo) -> Path:
    host = host_context(info)
    return value if host is None else host.key(value, read_key_pair)


def _public_key(value: Path, info: pydantic.ValidationInfo) -> Path:
    host = host_context(info)
    return value if host is None else host.key(value, read_public_key)


def _secret_path(value: Path, info: pydantic.ValidationInfo) -> Path:
    if host_context(info) is not None and not value.is_absolute():
        # Not shown: it may be the secret.
        raise ValueError("not an absolute path; write that of a file with the secret, not the secret itself")
    return value


def _password_file(value: Path, info: pydantic.ValidationInfo) -> Path:
    host = host_context(info)
    return value if host is None else host.key(value, read_password)


def _key_folder(value: Path, info: pydantic.ValidationInfo) -> Path:
    host = host_context(info)
    return value if host is None else host.key(value, read_allow_list)


def _writable(value: Path, info: pydantic.ValidationInfo) -> Path:
    host = host_context(info)
    return value if host is None else host.folder(value)


Size = Annotated[int, pydantic.BeforeValidator(_size), pydantic.Field(ge=0)]
FileName = Annotated[str, pydantic.Field(max_length=200, pattern=r"^\w[\w.-]*$")]
"""A name that is part of paths: no dot at its beginning, so that it is neither ``..`` nor hidden."""
LoggerName = Annotated[str, pydantic.Field(pattern=r"^[\w-]+(\.[\w-]+)*$")]
"""The name of a logger."""
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Seconds = Annotated[float, pydantic.Field(gt=0)]
Rate = Annotated[float, pydantic.Field(ge=1)]
_Detector = Annotated[int, pydantic.BeforeValidator(_no_switch), pydantic.Field(ge=0)]
Detectors = Annotated[
    tuple[_Detector, ...], pydantic.BeforeValidator(_detectors), pydantic.AfterValidator(unique)
]
UserId = Annotated[int, pydantic.BeforeValidator(_user_id), pydantic.Field(ge=0)]
GroupId = Annotated[int, pydantic.BeforeValidator(_group_id), pydantic.Field(ge=0)]
VisitGrouping = Literal["one-to-one", "by-group"]
IngestKind = Literal["builtin", "obs_base"]
WritableFolder = Annotated[Path, pydantic.AfterValidator(_writable)]
SecretKeyFile = Annotated[Path, pydantic.AfterValidator(_secret_key)]
PublicKeyFile = Annotated[Path, pydantic.AfterValidator(_public_key)]
SecretPath = Annotated[Path, pydantic.AfterValidator(_secret_path)]
PasswordFile = Annotated[SecretPath, pydantic.AfterValidator(_password_file)]
KeyFolder = Annotated[Path, pydantic.AfterValidator(_key_folder)]
SocketPath = Annotated[Path, pydantic.AfterValidator(_socket_path)]
Address = Annotated[str, pydantic.AfterValidator(_address)]
RedisUrl = Annotated[str, pydantic.AfterValidator(_redis_url)]
RedisName = Annotated[str, pydantic.Field(pattern=r"^\S+$", max_length=200)]
"""The name of a stream or of a consumer group."""
HttpAddress = Annotated[str, pydantic.AfterValidator(_http_address)]
CollectorUrl = Annotated[str, pydantic.AfterValidator(_collector_url)]
CollectionTemplate = Annotated[str, pydantic.AfterValidator(_template)]
ConnectAddress = Annotated[Address, pydantic.AfterValidator(_connectable)]


def valid_values(keys: Any, *names: str) -> tuple[Any, ...]:
    """Return the values of these keys, or an empty tuple if one of them has an error."""
    return tuple(getattr(keys, name) for name in names) if all(hasattr(keys, name) for name in names) else ()


class ConfigPart(Model):
    """Base of the parts of a configuration: keys that contradict each other are reported also if
    other keys have errors.
    """

    @classmethod
    def conflicts(cls, keys: Any) -> Iterator[tuple[KeyPath, str]]:
        """Yield the key path within the part, and the text, of each contradiction.

        `keys` has the valid keys as attributes; see `valid_values`.
        """
        yield from ()

    @pydantic.model_validator(mode="wrap")
    @classmethod
    def _without_conflicts(
        cls, value: Any, handler: pydantic.ModelWrapValidatorHandler[Any], info: pydantic.ValidationInfo
    ) -> Any:
        problems: list[InitErrorDetails] = []
        try:
            keys = part = handler(value)
        except pydantic.ValidationError as error:
            problems = [_detail(each["type"], each["msg"], each["loc"]) for each in error.errors()]
            keys = part = _valid_keys(cls, value, info.context)
        for name in cls.model_fields if isinstance(value, dict) else ():
            switches = _switches(value.get(name), getattr(keys, name, None), (name,))
            problems += [_detail("switch", text, key_path) for key_path, text in switches]
        problems += [_detail("conflict", text, key_path) for key_path, text in cls.conflicts(keys)]
        if problems:
            raise pydantic.ValidationError.from_exception_data(cls.__name__, problems)
        return part


def _switches(given: Any, valid: Any, key_path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Find numbers, also in lists, that are given as a switch: pydantic makes one of ``true``, too."""
    if isinstance(given, bool) and type(valid) in (int, float):
        yield key_path, f"{str(given).lower()} is not a number"
    elif isinstance(given, list) and isinstance(valid, tuple) and len(given) == len(valid):
        for number, pair in enumerate(zip(given, valid, strict=True)):
            yield from _switches(*pair, (*key_path, number))


def _detail(kind: Any, text: str, key_path: KeyPath) -> InitErrorDetails:
    return InitErrorDetails(
        type=PydanticCustomError(kind, "{text}", {"text": text}), loc=key_path, input=None
    )


def _valid_keys(part: type[ConfigPart], value: Any, context: object) -> SimpleNamespace:
    """Return the valid keys of a part that has errors, and the defaults of those that are missing; not of
    one that is misspelled, since its default could contradict other keys.
    """
    found: dict[str, Any] = {}
    unknown = [str(key) for key in value if key not in part.model_fields] if isinstance(value, dict) else []
    for name, field in part.model_fields.items() if isinstance(value, dict) else ():
        if name not in value:
            if not field.is_required() and not any(did_you_mean(key, [name]) for key in unknown):
                found[name] = field.get_default(call_default_factory=True)
            continue
        checked: Any = Annotated[field.annotation, field]
        try:
            found[name] = pydantic.TypeAdapter[Any](checked).validate_python(value[name], context=context)
        except pydantic.ValidationError:
            for inner in (field.annotation, *typing.get_args(field.annotation)):
                if isinstance(inner, type) and issubclass(inner, ConfigPart):
                    found[name] = _valid_keys(inner, value[name], context)
    return SimpleNamespace(**found)


def needs_kafka() -> str:
    """Return why Kafka cannot be used here; empty if it can."""
    if importlib.util.find_spec("confluent_kafka") is not None:
        return ""
    return "Kafka needs the package confluent-kafka: install ppdaemon with the extra kafka"


def kafka_conflicts(keys: Any) -> Iterator[tuple[KeyPath, str]]:
    """Find a password of Kafka that would not be used; `keys` are those of a part with `options` and
    `password`.
    """
    if (values := valid_values(keys, "options", "password")) and values[1] is not None:
        options = values[0]
        if "sasl.password" in options:
            yield ("password",), "options have sasl.password, too: remove it there"
        if not options.get("sasl.username"):
            yield ("options",), "missing sasl.username, the user of password"
        if not options.get("security.protocol", "").upper().startswith("SASL"):
            yield ("options",), "password is used with security.protocol SASL_SSL or SASL_PLAINTEXT only"


def needs_redis() -> str:
    """Return why Redis cannot be used here; empty if it can."""
    if importlib.util.find_spec("redis") is not None:
        return ""
    return "Redis needs the package redis: install ppdaemon with the extra redis"
