"""What can be pulled: images known by name, and any URL that may be used. Nothing is kept."""

import hashlib
import ipaddress
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

from holdfast.spec.errors import InvalidInput, NotFound

_CHECKSUM = re.compile(r"(sha256|sha512):([0-9a-fA-F]{64}|[0-9a-fA-F]{128})", re.ASCII)
_PLAIN_LINE = re.compile(r"([0-9a-fA-F]{64,128})\s+[* ]?(\S+)", re.ASCII)
_BSD_LINE = re.compile(r"(SHA256|SHA512) \((\S+)\) = ([0-9a-fA-F]{64,128})", re.ASCII)
_DIGITS = {"sha256": 64, "sha512": 128}


class UrlNotAllowed(InvalidInput):
    id = "url-not-allowed"


class BadChecksum(InvalidInput):
    id = "bad-checksum"


class NotInCatalogue(NotFound):
    id = "image-not-in-catalogue"


class ChecksumNotListed(NotFound):
    id = "checksum-not-listed"


@dataclass(frozen=True)
class Checksum:
    algorithm: str
    digest: str
    """Lower-case hex digits."""

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"

    def begin(self) -> "hashlib._Hash":
        return hashlib.new(self.algorithm)


@dataclass(frozen=True)
class Origin:
    """Where to pull from, and how the content is known to be right."""

    url: str
    name: str
    checksum: Checksum | None = None
    checksums_url: str | None = None
    algorithm: str = "sha256"


@cache
def known() -> dict[str, Origin]:
    """The images of the catalogue by name."""
    text = files("holdfast.storage").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return {
        name: Origin(entry["url"], name, None, entry.get("checksums"), entry.get("algorithm", "sha256"))
        for name, entry in tomllib.loads(text).items()
    }


def parse_checksum(text: str) -> Checksum:
    """Raises BadChecksum where it is not `sha256:` or `sha512:` and as many hex digits as that has."""
    match = _CHECKSUM.fullmatch(text.strip())
    if not match or len(match[2]) != _DIGITS[match[1]]:
        raise BadChecksum(
            f"{text[:80]!r} is not a checksum",
            value=text[:80],
            cure="Write sha256: and 64 hex digits, or sha512: and 128.",
        )
    return Checksum(match[1], match[2].lower())


def find_origin(source: str, checksum: str | None) -> Origin:
    """What `image pull SOURCE` means.

    Raises:
        NotInCatalogue: it is neither a known name nor a URL.
        UrlNotAllowed, BadChecksum: see `require_allowed` and `parse_checksum`.
    """
    expected = parse_checksum(checksum) if checksum else None
    if "://" not in source:
        entry = known().get(source.lower())
        if entry is None:
            raise NotInCatalogue(
                f"{source[:80]!r} is not an image that is known by name",
                value=source[:80],
                cure=f"Use one of {', '.join(known())}, or an https URL.",
            )
        return Origin(
            entry.url, entry.name, expected, None if expected else entry.checksums_url, entry.algorithm
        )
    require_allowed(source, expected is not None)
    return Origin(source, _name_of(source), expected)


def _name_of(url: str) -> str:
    """A usable name out of a URL's last part."""
    last = PurePosixPath(unquote(urlsplit(url).path)).name
    stem = re.sub(r"\.(qcow2|img|raw|iso|vmdk|vhdx?)$", "", last, flags=re.IGNORECASE)
    return re.sub(r"[^A-Za-z0-9._-]+|\.{2,}", "-", stem).strip("._-")[:63].rstrip("._-") or "image"


def require_allowed(url: str, has_checksum: bool, before: str | None = None) -> None:
    """Pass where `url` may be fetched, coming from `before` by a redirect.

    https always; http from this host itself, or where a given checksum vouches for the content;
    never from https to http. User names and passwords are refused, for the URL is recorded.

    Raises:
        UrlNotAllowed: the value has no credentials in it.
    """
    shown = redacted(url)
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise _not_allowed(shown, "it is not a URL", "Check it.") from None
    if parts.username or parts.password:
        cure = "Download the file yourself and import it, or offer it where no password is needed."
        raise _not_allowed(shown, "it holds a user name or a password", cure)
    if parts.scheme not in ("http", "https") or not host:
        raise _not_allowed(shown, "only https is fetched", "Use an https URL.")
    if parts.scheme == "http":
        if before is not None and urlsplit(before).scheme == "https":
            raise _not_allowed(shown, "an https address must not lead to http", "Use another source.")
        if not has_checksum and not _is_loopback(host):
            cure = "Use https, or give the file's checksum with --checksum."
            raise _not_allowed(shown, "http does not protect what it carries", cure)


def _not_allowed(shown: str, why: str, cure: str) -> UrlNotAllowed:
    return UrlNotAllowed(f"{shown!r} is not fetched: {why}", value=shown, cure=cure)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def redacted(url: str) -> str:
    """A URL for records and logs: no user, password, query or fragment."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(not a URL)"
    host = parts.hostname or ""
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}{parts.path}"[:1000]


def listed_checksum(text: str, file_name: str, algorithm: str) -> Checksum:
    """The checksum of `file_name` in a list of sha256sum(1) or BSD form. Raises ChecksumNotListed."""
    lines = [line.strip() for line in text.splitlines()]
    for line in lines:
        bsd, plain = _BSD_LINE.fullmatch(line), _PLAIN_LINE.fullmatch(line)
        name, digest = (bsd[2], bsd[3]) if bsd else (plain[2], plain[1]) if plain else ("", "")
        if PurePosixPath(name).name == file_name and len(digest) == _DIGITS[algorithm]:
            return Checksum(algorithm, digest.lower())
    raise ChecksumNotListed(
        f"the list of checksums does not name {file_name!r}",
        value=file_name,
        cure="Give the checksum with --checksum.",
    )
