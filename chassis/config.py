"""Configuration: one frozen dataclass per service, read once from a TOML file and passed on explicitly.

Owns reading and writing such files. Relations between fields are the dataclass's own (``__post_init__``). Nothing here
or elsewhere reads environment variables.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from chassis.certificates import TlsFiles
from chassis.faults import Fault, FaultCode
from chassis.rpc import Caller

Config = TypeVar("Config")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class IssuerConfig:
    """A placement's own authority, from which it gives certificates to itself and to whoever may have one."""

    certificate: str                        # its intermediate, PEM
    key: str
    listen: str                             # where enrolment is served, host:port
    lifetime_s: float = 86_400.0            # of the certificates that it issues

    def __post_init__(self) -> None:
        if not 1.0 <= self.lifetime_s <= 366 * 86_400.0:
            raise ValueError(f"lifetime_s is {self.lifetime_s}, allowed are 1 s to a year")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EnrolmentConfig:
    """Where a process gets its certificate, instead of from files that somebody made for it."""

    authority: str                          # the region's root, PEM
    directory: str = ""                     # for key and certificate; a placement's: for its copy of the node records
    token_file: str = ""                    # one-time token; of no use any more once a certificate is kept
    seeds: tuple[str, ...] = ()             # addresses of placements' enrolment listeners
    issuer: IssuerConfig | None = None      # placements only: they need neither token nor seeds

    def __post_init__(self) -> None:
        if self.issuer is None and not (self.directory and self.seeds):
            raise ValueError("name a directory, and seeds: the enrolment listeners of placements")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """What every process of every service is told: the section [node] of its file."""

    service: str
    node: str                               # unique in the region, e.g. "frontend-az1-1"
    az: str
    host: str                               # several processes of one host carry the same
    listen: str                             # gRPC, host:port; port 0: any free one
    placement: tuple[str, ...]              # seeds: addresses of placement processes
    tls: TlsFiles | None = None             # files that somebody made for this process,
    enrolment: EnrolmentConfig | None = None    # or how it gets them; one of the two
    advertise: str = ""                     # host name under which peers reach this process; empty: as it listens
    region: str = "us-east-1"
    metrics_listen: str = ""                # HTTP host:port of /metrics; port 0: any free one; empty: not served
    health_socket: str = ""                 # gRPC health on this socket, for checks from inside; empty: none
    trace: str = ""                         # file for the event trace; empty: none
    check: bool = False                     # run the cores' invariants after every event
    log_level: str = "info"
    drain_s: float = 5.0                    # for how long a draining process lets its work finish
    event_loop: str = "uvloop"              # or "asyncio"

    def __post_init__(self) -> None:
        if (self.tls is None) == (self.enrolment is None):
            raise ValueError("a process has either tls, files that were made for it, or enrolment")

    @property
    def identity(self) -> Caller:
        return Caller(service=self.service, node=self.node, az=self.az, host=self.host)

    def reached(self, address: str) -> str:
        """What this process registers for an address, host:port, that it is bound to."""
        return f"{self.advertise}:{address.rpartition(':')[2]}" if self.advertise else address


class ConfigFault(Fault):
    """A file that can't be used: names the file, the field, the value and what is allowed."""

    code = FaultCode.INVALID
    definite = True


def load(kind: type[Config], path: Path) -> Config:
    """Reads ``path`` into ``kind``. Raises ConfigFault."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFault(f"can't read the configuration {path}: {error}") from error
    return parse(kind, text, str(path))


def parse(kind: type[Config], text: str, path: str) -> Config:
    """``text``, which came from ``path``, as ``kind``. Raises ConfigFault."""
    try:
        return _build(kind, tomllib.loads(text), "")
    except tomllib.TOMLDecodeError as error:
        raise ConfigFault(f"{path} is not TOML: {error}") from error
    except ConfigFault as fault:
        raise ConfigFault(f"{path}: {fault.message}") from None


def changed(settings: Config, changes: Mapping[str, Any]) -> Config:
    """The same with other values, as TOML has them, for some of its plain settings. Raises ConfigFault."""
    return _build(type(settings), {**tomllib.loads(dump(settings)), **changes}, "")


def _build(kind: type[Config], table: Any, where: str) -> Config:
    if not isinstance(table, dict):
        raise ConfigFault(f"{where or 'the file'} is {table!r}, a table is needed")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # a dataclass by contract
    unknown = sorted(set(table) - set(fields))
    if unknown:
        raise ConfigFault(f"{where}{unknown[0]} is not a setting; there are {', '.join(sorted(fields))}")
    values = {name: _value(hints[name], value, where + name) for name, value in table.items()}
    missing = [
        name for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigFault(f"{where}{missing[0]} is missing")
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigFault(f"{where or ''}{error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _build(hint, value, where + ".")
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _value(next(item for item in arguments if item is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigFault(f"{where} is {value!r}, a list is needed")
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise ConfigFault(f"{where} is {value!r}, a table is needed")
        return {key: _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigFault(f"{where} is {value!r}, {hint.__name__} is needed")
    return value


def dump(config: Any) -> str:
    """A config dataclass as TOML, the inverse of ``load``."""
    lines: list[str] = []
    _dump_table(dataclasses.asdict(config), "", lines)
    return "\n".join(lines) + "\n"


def _dump_table(table: dict[str, Any], name: str, lines: list[str]) -> None:
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and value is not None}
    if name and (plain or not table):
        lines.append(f"[{name}]")
    lines += [f"{_key(key)} = {_literal(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            _dump_table(value, f"{name}.{_key(key)}" if name else _key(key), lines)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else _literal(key)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_literal(item) for item in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(f"\\u{ord(c):04x}" if ord(c) < 32 or ord(c) == 127 else c for c in text) + '"'
