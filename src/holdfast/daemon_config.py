"""What `holdfast serve` is told: options, then the environment, then a TOML file, then defaults."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator

from holdfast.spec.errors import InvalidInput
from holdfast.spec.model import Frozen

ENVIRONMENT = {
    "state": "HOLDFAST_STATE",
    "runtime": "HOLDFAST_RUNTIME",
    "socket": "HOLDFAST_SOCKET",
    "listen": "HOLDFAST_LISTEN",
    "replica_listen": "HOLDFAST_REPLICA_LISTEN",
    "host_tpm": "HOLDFAST_HOST_TPM",
    "tpm_authorities": "HOLDFAST_TPM_AUTHORITIES",
}
SYSTEM_FILE = Path("/etc/holdfast/holdfast.toml")


class BadConfig(InvalidInput):
    id = "bad-config"


def default_state() -> Path:
    if os.getuid() == 0:
        return Path("/var/lib/holdfast")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "holdfast"


def default_runtime() -> Path:
    if os.getuid() == 0:
        return Path("/run/holdfast")
    run = os.environ.get("XDG_RUNTIME_DIR")
    return Path(run) / "holdfast" if run else default_state() / "run"


def split_address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` in two; a ValueError where it is neither."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is not HOST:PORT, for example 127.0.0.1:8443 or [::]:8443")
    return host.strip("[]"), int(port)


class DaemonConfig(Frozen):
    state: Path = Field(default_factory=default_state)
    runtime: Path = Field(default_factory=default_runtime)
    socket: Path | None = None
    """None: `holdfast.sock` in the runtime folder."""
    listen: str | None = None
    """HOST:PORT of the TLS door; None: there is none."""
    replica_listen: str | None = None
    """HOST:PORT where other hosts send replicas; None: none are taken."""

    host_tpm: str | None = Field(default=None, pattern=r"^(none$|(device|swtpm):/)")
    """This host's TPM: `device:` or `swtpm:` and a path, or `none`; None: `device:/dev/tpmrm0` if there."""
    tpm_authorities: Path | None = None
    """PEM file of those who make TPMs that this verifier trusts; None: who enrols a host vouches for it."""

    @field_validator("listen", "replica_listen")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value:
            split_address(value)
        return value or None

    @field_validator("state", "runtime", "socket", "tpm_authorities")
    @classmethod
    def _is_absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @property
    def unix_socket(self) -> Path:
        return self.socket or self.runtime / "holdfast.sock"

    @property
    def tcp(self) -> tuple[str, int] | None:
        return split_address(self.listen) if self.listen else None

    @property
    def replica_tcp(self) -> tuple[str, int] | None:
        return split_address(self.replica_listen) if self.replica_listen else None


def _line_of(text: str, key: str) -> int:
    for number, line in enumerate(text.splitlines(), 1):
        if line.split("=")[0].strip().strip("[]\"'") == key:
            return number
    return 1


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        found = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} cannot be read: {error}", value=str(path)) from error
    except tomllib.TOMLDecodeError as error:
        raise BadConfig(f"{path} is not TOML: {error}", value=str(path), cure="Correct that line.") from error
    for key in found:
        if key not in DaemonConfig.model_fields:
            known = ", ".join(DaemonConfig.model_fields)
            raise BadConfig(
                f"{path}, line {_line_of(text, key)}: there is no setting {key!r}",
                value=key,
                cure=f"The settings are {known}.",
            )
    return found


def load(
    options: Mapping[str, Any], file: Path | None = None, environment: Mapping[str, str] = os.environ
) -> DaemonConfig:
    """The settings in force. Options that are None count as not given.

    Raises:
        BadConfig: the file cannot be read or a value is wrong; names the file's line or the setting.
    """
    if file is None and SYSTEM_FILE.exists() and os.getuid() == 0:
        file = SYSTEM_FILE
    values = _read(file) if file else {}
    values |= {key: environment[name] for key, name in ENVIRONMENT.items() if environment.get(name)}
    values |= {key: value for key, value in options.items() if value is not None}
    try:
        return DaemonConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        raise BadConfig(
            f"the setting {key!r}: {first['msg'].removeprefix('Value error, ')}",
            value=str(first.get("input")),
            cure=f"Correct it where it was given: --{key}, {ENVIRONMENT.get(key)} or {file}.",
        ) from error
