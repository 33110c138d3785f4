"""A list of findings that grows while evidence is judged, within bounds.

A hostile log could make as many findings as it has events: of each id, only the first few are told.
"""

from collections import Counter

from holdfast.spec.trust import Finding, Severity

_MOST_OF_ONE = 64


class Findings:
    def __init__(self) -> None:
        self._found: list[Finding] = []
        self._count: Counter[tuple[str, Severity]] = Counter()

    def info(self, id: str, text: str) -> None:
        self._add(id, Severity.INFO, text)

    def warning(self, id: str, text: str) -> None:
        self._add(id, Severity.WARNING, text)

    def failure(self, id: str, text: str) -> None:
        self._add(id, Severity.FAILURE, text)

    @property
    def failed(self) -> bool:
        return any(severity is Severity.FAILURE for _, severity in self._count)

    def all(self) -> tuple[Finding, ...]:
        """In the order in which they were made; the last of an id tells of those left out."""
        left = [
            Finding(id=id, severity=severity, text=f"{count - _MOST_OF_ONE} more of these are not listed")
            for (id, severity), count in self._count.items()
            if count > _MOST_OF_ONE
        ]
        return (*self._found, *left)

    def _add(self, id: str, severity: Severity, text: str) -> None:
        self._count[id, severity] += 1
        if self._count[id, severity] <= _MOST_OF_ONE:
            self._found.append(Finding(id=id, severity=severity, text=text))
