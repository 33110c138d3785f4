"""`holdfast trust policy learn`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption
from holdfast.cli.trust_paths import DryRun

EXAMPLE = "holdfast trust policy learn web --dry-run"


def command(name: VmArgument, dry_run: DryRun = False, format_: FormatOption = Format.TABLE) -> None:
    """Make a VM's present boot the baseline that later boots are compared with."""
    from holdfast.cli.output import show
    from holdfast.cli.session import connect
    from holdfast.cli.sheets.trust import policy_sheet
    from holdfast.cli.trust_paths import trust_path

    with connect() as client:
        answer = client.wire("POST", trust_path(name, "policy/learn"), query={"dry_run": dry_run})
    show(answer, format_, policy_sheet)
