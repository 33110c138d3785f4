"""The boot chain in words: firmware, Secure Boot, shim, GRUB, kernel, and what GRUB read.

Digests are what was measured. Names of files are the log's own claims, and so is which certificate
accepted which program: only the set of programs and the set of certificates is measured. The texts
say so where it matters. Nothing is kept here.
"""

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from holdfast.spec.trust import Bank, ChainLink, LinkRole, Signer
from holdfast.trust.event_log import Event, EventLog, Kind
from holdfast.trust.guest_text import printable
from holdfast.trust.measured import (
    claimed_path,
    claimed_text,
    firmware_version,
    grub_text,
    is_boot_action,
    is_separator,
    proven_variable,
)
from holdfast.trust.secure_boot_record import SecureBootRecord, read_record
from holdfast.trust.signature_lists import X509, read_certificate

_TEXTS = (Kind.ACTION, Kind.EFI_ACTION)
_BLOBS = (Kind.FIRMWARE_BLOB, Kind.FIRMWARE_BLOB_2)
_KINDS = {
    Kind.CRTM_VERSION: "firmware version",
    Kind.FIRMWARE_BLOB: "firmware volume",
    Kind.FIRMWARE_BLOB_2: "firmware volume",
    Kind.BOOT_DRIVER: "driver",
    Kind.RUNTIME_DRIVER: "driver",
    Kind.GPT: "partition table",
    Kind.GPT_2: "partition table",
    Kind.VARIABLE_BOOT: "boot setting",
    Kind.VARIABLE_BOOT_2: "boot setting",
    Kind.ACTION: "action",
    Kind.EFI_ACTION: "action",
}
_SHOWN = 300
_MAX_OF_ROLE = 32
_MAX_SIGNERS = 8
_LONGEST = 1000
_WORDS = {
    LinkRole.LOADER: "loader",
    LinkRole.SHIM: "shim",
    LinkRole.GRUB: "GRUB",
    LinkRole.KERNEL: "kernel",
}


@dataclass(frozen=True, slots=True)
class Program:
    """Something that firmware or shim started, PCR 4."""

    event: Event
    role: LinkRole
    signers: tuple[Signer, ...]


@dataclass(frozen=True, slots=True)
class BootChain:
    links: tuple[ChainLink, ...]
    record: SecureBootRecord
    programs: tuple[Program, ...]
    bank: Bank
    odd: tuple[Event, ...]
    """Events of PCR 4 that are of no kind which belongs there; they count as programs."""


def read_chain(log: EventLog, bank: Bank, known: Mapping[str, str] | None = None) -> BootChain:
    """Read a log's chain. It is as true as the log: compare its replay with a quote.

    Args:
        bank: whose digests are shown; the log must have it.
        known: digests (`sha256:...`) to what they are known as.
    """
    record = read_record(log)
    programs, odd = _programs(log, record)
    known = known or {}
    links = [
        *_firmware(log, bank, known),
        _secure_boot(record),
        *_started(programs, bank, known),
        *_read_later(log, record, bank, known),
    ]
    links.sort(key=lambda link: link.event)
    return BootChain(tuple(_first_of_each(links)), record, programs, bank, odd)


def _first_of_each(links: list[ChainLink]) -> Iterator[ChainLink]:
    """A guest can add events without end: a flood of one role must not hide another."""
    seen = Counter[LinkRole]()
    for link in links:
        seen[link.role] += 1
        if seen[link.role] <= _MAX_OF_ROLE:
            yield link


def name_events(log: EventLog, chain: BootChain) -> dict[int, str]:
    """What each event is, in a few words, by its number."""
    names = {program.event.number: _WORDS[program.role] for program in chain.programs}
    for event in log.events:
        names.setdefault(event.number, _name(event))
    return names


def _programs(log: EventLog, record: SecureBootRecord) -> tuple[tuple[Program, ...], tuple[Event, ...]]:
    """All of PCR 4 that is no proven text. Which is which is told by what else was measured."""
    events = [
        event
        for event in log.events
        if event.pcr == 4
        and not is_separator(event)
        and not is_boot_action(event)
        and not (event.kind in _TEXTS and event.proves(event.data))
    ]
    odd = tuple(
        event
        for event in events
        if event.kind not in (Kind.BOOT_APPLICATION, Kind.BOOT_DRIVER, Kind.RUNTIME_DRIVER)
    )
    texts = [(event.number, text) for event in log.events if (text := grub_text(event)) is not None]
    first_text = min((number for number, _ in texts), default=0)
    signers = _signers(events, record)
    roles = _roles(events, record.shim, first_text)
    found = (Program(event, role, signer) for event, role, signer in zip(events, roles, signers, strict=True))
    return tuple(found), odd


def _roles(events: list[Event], shim: bool, first_text: int) -> list[LinkRole]:
    """shim comes first; GRUB has the name, or is the last before GRUB's first text; the kernel follows it."""
    numbers = [event.number for event in events]
    named = [event.number for event in events if _file_name(event).startswith("grub")]
    before = named or [number for number in numbers if number < first_text]
    grub = before[-1] if before else None
    roles = []
    for place, number in enumerate(numbers):
        if shim and place == 0:
            roles.append(LinkRole.SHIM)
        elif number == grub:
            roles.append(LinkRole.GRUB)
        elif grub is not None and number > grub:
            roles.append(LinkRole.KERNEL)
        else:
            roles.append(LinkRole.LOADER)
    return roles


def _file_name(event: Event) -> str:
    return claimed_path(event).rpartition("\\")[2].casefold()


def _signers(events: list[Event], record: SecureBootRecord) -> list[tuple[Signer, ...]]:
    """Each certificate is measured once, before the first program that it accepted.

    A program without one of its own was accepted by the one before. Of more than 8 the first are told.
    """
    found: list[tuple[Signer, ...]] = []
    waiting = deque(record.authorities)
    latest: tuple[Signer, ...] = ()
    for event in events:
        own: dict[Signer, None] = {}
        while waiting and waiting[0].event.number < event.number:
            own[waiting.popleft().signer] = None
        latest = tuple(own)[:_MAX_SIGNERS] or latest
        found.append(latest)
    return found


def _firmware(log: EventLog, bank: Bank, known: Mapping[str, str]) -> list[ChainLink]:
    version = next(((event, text) for event in log.events if (text := firmware_version(event))), None)
    said = f"version {printable(version[1], 60)!r}" if version else "which tells no version"
    links = []
    for event in log.events:
        if event.pcr == 0 and event.kind in _BLOBS:
            digest = event.text_of(bank)
            text = f"firmware, {said}: {_digest(digest, known)}"
            links.append(_link(LinkRole.FIRMWARE, text, event, digest, known=known))
    if version and not links:
        event, _ = version
        links.append(
            ChainLink(role=LinkRole.FIRMWARE, text=f"firmware, {said}", pcr=event.pcr, event=event.number)
        )
    return links


def _secure_boot(record: SecureBootRecord) -> ChainLink:
    state = {True: "on", False: "off", None: "not told"}[record.enabled]
    owner = next(
        (
            printable(held.subject, _SHOWN)
            for each in record.databases.get("PK", ())
            if each.kind == X509 and (held := read_certificate(each.data))
        ),
        None,
    )
    parts = [f"Secure Boot is {state}"]
    parts += [f"its keys belong to {owner}"] if owner else []
    parts += [
        f"{name} has {len(record.databases[name])} entries"
        for name in ("db", "dbx")
        if name in record.databases
    ]
    return ChainLink(role=LinkRole.SECURE_BOOT, text="; ".join(parts), pcr=7, event=record.event)


def _started(programs: tuple[Program, ...], bank: Bank, known: Mapping[str, str]) -> list[ChainLink]:
    """shim and GRUB may both measure the kernel: the same digest in a row is one link."""
    links: list[ChainLink] = []
    last = ""
    for program in programs:
        digest = program.event.text_of(bank)
        if digest == last:
            continue
        last = digest
        path = printable(claimed_path(program.event), 120)
        text = (
            f"{_WORDS[program.role]}{f' (named {path} in the log)' if path else ''}: {_digest(digest, known)}"
        )
        if program.signers:
            text += ", accepted by " + "; ".join(
                f"{each.subject} ({each.source})" for each in program.signers
            )
        else:
            text += ", accepted by nobody"
        text = printable(text, _LONGEST)
        links.append(_link(program.role, text, program.event, digest, known=known, signers=program.signers))
    return links


def _read_later(
    log: EventLog, record: SecureBootRecord, bank: Bank, known: Mapping[str, str]
) -> list[ChainLink]:
    links = []
    if record.sbat is not None:
        level = ", ".join(f"{name} {generation}" for name, generation in record.sbat.items())
        text = printable(f"shim refuses what is older than SBAT level {level}", _SHOWN)
        links.append(ChainLink(role=LinkRole.REVOCATIONS, text=text, pcr=7, event=record.sbat_event))
    for event in log.events:
        said = grub_text(event)
        if said is not None and said[0] == "kernel_cmdline":
            text = f"kernel command line: {printable(said[1], _SHOWN)}"
            links.append(_link(LinkRole.COMMAND_LINE, text, event, event.text_of(bank), known=known))
        elif event.pcr == 9 and event.kind == Kind.IPL:
            digest = event.text_of(bank)
            name = printable(claimed_text(event), 120)
            text = f"file read by GRUB (named {name} in the log): {_digest(digest, known)}"
            links.append(_link(LinkRole.FILE, text, event, digest, known=known))
    return links


def _link(
    role: LinkRole,
    text: str,
    event: Event,
    digest: str,
    *,
    known: Mapping[str, str],
    signers: tuple[Signer, ...] = (),
) -> ChainLink:
    return ChainLink(
        role=role,
        text=text,
        pcr=event.pcr,
        event=event.number,
        digest=digest,
        signers=signers,
        known=known.get(digest),
    )


def _digest(digest: str, known: Mapping[str, str]) -> str:
    name = known.get(digest)
    return f"{name}, {digest}" if name else digest


def _name(event: Event) -> str:
    if is_separator(event):
        return "separator"
    if is_boot_action(event):
        return "boot attempt"
    said = grub_text(event)
    if said is not None:
        kind = {"grub_cmd": "GRUB command", "kernel_cmdline": "kernel command line"}.get(
            said[0], "module command line"
        )
        return f"{kind} {printable(said[1], 100)!r}"
    variable = proven_variable(event)
    if variable is not None:
        what = "entry that accepted a loader, of" if event.kind == Kind.VARIABLE_AUTHORITY else "variable"
        return f"{what} {printable(variable.name, 60)}"
    claimed = printable(claimed_text(event), 100)
    if claimed and event.pcr == 9:
        return f"file {claimed}"
    if claimed and event.pcr == 14:
        return f"shim's {claimed}"
    return next(
        (name for kind, name in _KINDS.items() if kind == event.kind), f"event of type {event.kind:#x}"
    )
