"""How `vm import` hands sources over, shows plans, and runs imports side by side."""

import contextlib
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.api.handing_client import Handing
from holdfast.cli.import_batch import Batch
from holdfast.cli.import_sources import LocalSource, is_url, sources_at
from holdfast.cli.output import Format, escape, print_json, say
from holdfast.cli.sheets.appliance import plan_sheet
from holdfast.cli.waiting import OperationCancelled, ended, finish
from holdfast.spec.errors import Failed, InvalidInput, RemoteError

Source = LocalSource | str
"""Files here, or a URL."""


class ImportsFailed(Failed):
    """The value is the sources that were not imported."""

    id = "imports-failed"


class NoStateForKey(InvalidInput):
    id = "no-state-for-key"


class Importer:
    """`connect` opens a client; `body` is a VmImport without its files."""

    def __init__(
        self,
        connect: Callable[[], Any],
        body: dict[str, Any],
        format_: Format,
        *,
        checksum: str | None = None,
        private_key: Path | None = None,
    ) -> None:
        """`checksum` is of URLs; `private_key` that of the recipient of the firmware state."""
        self._connect = connect
        self._body = body
        self._format = format_
        self._checksum = checksum
        self._private_key = private_key
        self._follow: Callable[[Any, dict[str, Any], str], Any] = lambda client, wire, _: ended(client, wire)
        self._asking = threading.Lock()

    @staticmethod
    def sources(named: list[str], more: list[Path]) -> list[Source]:
        """Raises NothingToImport, TooManyFiles."""
        found: list[Source] = []
        for text in named:
            found += [text] if is_url(text) else sources_at(Path(text).expanduser(), more)
        return found

    def run(self, sources: list[Source], plan: bool, no_wait: bool, at_once: int) -> None:
        """Plan or import all of them."""
        if plan:
            self.plan(sources)
        elif len(sources) == 1:
            self.import_one(sources[0], no_wait)
        else:
            self.import_all(sources, at_once)

    def plan(self, sources: list[Source]) -> None:
        """Print what each would become; of several as a list."""
        plans = []
        with self._connect() as client:
            for source in sources:
                plans.append(client.wire("POST", "/v1/imports/plan", self._request(client, source)))
        if self._format is Format.JSON:
            print_json(plans[0] if len(plans) == 1 else plans)
        else:
            sys.stdout.write("\n".join(plan_sheet(each) for each in plans))

    def import_one(self, source: Source, no_wait: bool) -> None:
        with self._connect() as client:
            wire = self._begin(client, self._request(client, source))
            result = finish(client, wire, self._format, no_wait)
        if not no_wait and self._format is Format.TABLE:
            _tell(result["result"] or {})
        _require_started(result["result"] or {})

    def import_all(self, sources: list[Source], at_once: int) -> None:
        """Every one, `at_once` at a time; what fails stops no other.

        Raises:
            ImportsFailed, OperationCancelled: not all were imported.
            LeftRunning: nobody waits for them any more.
        """
        batch = Batch(self._connect)
        self._follow = batch.follow

        def begin(source: Source) -> tuple[str, Callable[[Any], dict[str, Any]]]:
            return _label(source), lambda client: self._begin(client, self._request(client, source))

        results = batch.run([begin(source) for source in sources], at_once)
        if self._format is Format.JSON:
            print_json(results)
        failed = [each["source"] for each in results if "error" in each]
        if not failed:
            return
        told = f"{len(failed)} of {len(results)} were not imported: {', '.join(failed[:10])}"
        if batch.interrupted:
            raise OperationCancelled(told, value=failed, cure="Import those again.")
        raise ImportsFailed(told, value=failed, cure="See above why, and import those again.")

    def _request(self, client: Any, source: Source) -> dict[str, Any]:
        request = {**self._body, "files": self._files(client, source)}
        if self._private_key is not None:
            request["content_key"] = self._content_key(client, request, self._private_key)
        return request

    def _content_key(self, client: Any, request: dict[str, Any], private_key: Path) -> str:
        """The container lies in the source, perhaps far away; its key slot comes with the plan."""
        from holdfast.api.content_key import content_key_of_slot

        plan = client.wire("POST", "/v1/imports/plan", {**request, "passphrase": None})
        state = plan["firmware_state"] or {}
        if not state.get("slot"):
            raise NoStateForKey(
                f"{plan['name']!r} brings no firmware state along that a private key could open",
                value=str(private_key),
                cure="See its plan with --plan, or leave out --private-key.",
            )
        return content_key_of_slot(state["slot"], bytes.fromhex(state["bound"]), private_key)

    def _begin(self, client: Any, request: dict[str, Any]) -> dict[str, Any]:
        """Licence agreements are shown on a terminal, and asked about."""
        try:
            wire: dict[str, Any] = client.wire("POST", "/v1/imports", request)
        except RemoteError as refused:
            if refused.wire_id != "eula-not-accepted" or not sys.stdin.isatty():
                raise
            plan = client.wire("POST", "/v1/imports/plan", request)
            with self._asking:  # one question at a time
                for text in plan["eulas"]:
                    sys.stderr.write(f"{escape(text, keep=chr(10))}\n\n")
                sys.stderr.write(f"Do you accept this for {escape(plan['name'])}? [y/N] ")
                sys.stderr.flush()
                if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                    raise
            wire = client.wire("POST", "/v1/imports", {**request, "accept_eulas": True})
        return wire

    def _files(self, client: Any, source: Source) -> list[dict[str, str]]:
        if isinstance(source, str):
            wire = client.wire("POST", "/v1/imports/fetch", {"url": source, "checksum": self._checksum})
            result = self._follow(client, wire, source).result
            return [{"name": result["name"], "upload": result["upload"]}]
        return hand_over(client, source)


def hand_over(client: Any, source: LocalSource) -> list[dict[str, str]]:
    """Ids of a source's files: handed over open where the daemon is on this host, else sent."""
    with contextlib.ExitStack() as stack:
        handing = None
        if client.place.socket is not None:
            with contextlib.suppress(OSError):
                handing = stack.enter_context(Handing(client.place.socket))
        return [
            {"name": name, "upload": (_handed(handing, path) if handing else None) or _sent(client, path)}
            for name, path in source.files
        ]


def _handed(handing: Handing, path: Path) -> str | None:
    """None where it cannot be handed over, and its content must be sent."""
    try:
        return handing.hand(path)
    except RemoteError as refused:
        if refused.wire_id != "file-not-handable":
            raise
    except OSError:
        pass
    return None


def _sent(client: Any, path: Path) -> str:
    say(f"Sending {path.name}")
    return str(client.upload(path).id)


def _label(source: Source) -> str:
    return source if isinstance(source, str) else source.label


def _tell(result: dict[str, Any]) -> None:
    for finding in result.get("findings", ()):
        if finding["severity"] == "warning":
            say(f"Note: {finding['text']}.")


def _require_started(result: dict[str, Any]) -> None:
    """Raises RemoteError: it was imported, and did not start."""
    if result.get("start_error"):
        raise RemoteError(result["start_error"])
