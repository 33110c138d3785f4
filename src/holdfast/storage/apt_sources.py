"""Where this host gets Debian from: read from apt's own sources, used for the images that we build.

A host behind a mirror of its own builds from that mirror; its guests use the same one later.
Formats: sources.list(5), one-line and deb822. Nothing is kept; the host owns its sources.
"""

import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Of the package debian-archive-keyring, in the guest."""

_SUITES = ("bookworm", "trixie", "forky", "sid", "stable", "oldstable", "testing", "unstable")
_MAX_FILE = 256 * 1024


@dataclass(frozen=True)
class Entry:
    """One archive as apt sees it."""

    uri: str
    suite: str
    components: tuple[str, ...]
    keyring: str | None


@dataclass(frozen=True)
class Archives:
    """What an image of one suite is built from."""

    entries: tuple[Entry, ...]

    def one_line(self) -> list[str]:
        """Lines of sources.list(5) with the host's keyrings, for building."""
        return [
            f"deb {f'[signed-by={entry.keyring}] ' if entry.keyring else ''}"
            f"{entry.uri} {entry.suite} {' '.join(entry.components)}"
            for entry in self.entries
        ]

    def deb822(self) -> str:
        """The guest's own .sources file; it has Debian's keyring only."""
        return "\n".join(
            f"Types: deb\nURIs: {entry.uri}\nSuites: {entry.suite}\n"
            f"Components: {' '.join(entry.components)}\nSigned-By: {KEYRING}\n"
            for entry in self.entries
        )


def host_archives(suite: str, root: Path = Path("/")) -> Archives:
    """Archives of `suite` by the host's mirrors; none where the host is no Debian.

    With none mmdebstrap takes Debian's own servers, updates and security included (mmdebstrap(1)).
    Updates and security updates are there where the host has them for its own suite.
    """
    found = [entry for entry in _entries(root) if "main" in entry.components]
    release = _preferred(entry for entry in found if entry.suite in _SUITES)
    updates = _preferred(entry for entry in found if _is(entry.suite, "-updates"))
    security = _preferred(entry for entry in found if _is(entry.suite, "-security"))
    if release is None:
        return Archives(())
    chosen = [(release, ""), (updates, "-updates"), (security, "-security")]
    return Archives(
        tuple(
            Entry(entry.uri, suite + ending, ("main",), entry.keyring)
            for entry, ending in chosen
            if entry is not None
        )
    )


def _is(suite: str, ending: str) -> bool:
    return suite.endswith(ending) and suite.removesuffix(ending) in _SUITES


def _preferred(entries: Iterable[Entry]) -> Entry | None:
    """Other vendors use Debian's suite names too; Debian's own archive is called so everywhere."""
    ranked = sorted(entries, key=lambda entry: "debian" not in entry.uri.rstrip("/").rsplit("/", 1)[-1])
    return ranked[0] if ranked else None


def _entries(root: Path) -> list[Entry]:
    folder = root / "etc/apt"
    found: list[Entry] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.suffix not in (".list", ".sources"):
            continue
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_FILE).decode(errors="replace")
        except OSError:
            continue
        found += parse_deb822(text) if path.suffix == ".sources" else parse_one_line(text)
    resolved = (Entry(_uri(entry.uri, root), *_rest(entry)) for entry in found)
    return [entry for entry in resolved if re.fullmatch(r"https?://[!-~]+", entry.uri)]


def _rest(entry: Entry) -> tuple[str, tuple[str, ...], str | None]:
    return entry.suite, entry.components, entry.keyring


def _uri(uri: str, root: Path) -> str:
    """The first mirror of a mirror list (apt-transport-mirror(1)); anything else as it is."""
    if not uri.startswith("mirror+file:"):
        return uri.rstrip("/")
    path = root / uri.removeprefix("mirror+file:").lstrip("/")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.split()[0].rstrip("/") for line in lines if line.startswith("http")), "")


def parse_one_line(text: str) -> list[Entry]:
    """Entries of a .list file; what cannot be read is passed over."""
    found = []
    pattern = r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)"
    for line in text.split("\n"):
        match = re.match(pattern, line.strip())
        if match is None:
            continue
        options, uri, suite, components = match.groups()
        keyring = re.search(r"(?:^|\s)signed-by=(\S+)", options or "")
        found.append(Entry(uri, suite, tuple(components.split()), _path(keyring and keyring[1])))
    return found


def parse_deb822(text: str) -> list[Entry]:
    """Entries of a .sources file; disabled ones and what cannot be read are passed over."""
    found = []
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        last = ""
        for line in stanza.split("\n"):
            if line.startswith("#"):
                continue
            if line[:1] in (" ", "\t"):
                fields[last] = f"{fields.get(last, '')}\n{line.strip()}"
            elif ":" in line:
                last, value = line.split(":", 1)
                last = last.strip().lower()
                fields[last] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") in ("no", "false"):
            continue
        components = tuple(fields.get("components", "").split())
        keyring = _path(fields.get("signed-by"))
        found += [
            Entry(uri, suite, components, keyring)
            for uri in fields.get("uris", "").split()
            for suite in fields.get("suites", "").split()
        ]
    return found


def _path(keyring: str | None) -> str | None:
    """A keyring's path; a key given inline or by fingerprint is left to apt's trusted keys."""
    return keyring if keyring and keyring.startswith("/") and shlex.quote(keyring) == keyring else None
