"""`holdfast trust recover`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust recover web < recovery-key"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """Bring a VM's TPM back by its recovery key, typed at a prompt or read from standard input.

    For a VM whose folder came from another host, or whose host key is lost or sealed away.
    """
    from holdfast.api.client import vm_path
    from holdfast.cli.output import print_json, say
    from holdfast.cli.secret_input import typed
    from holdfast.cli.session import connect

    key = typed("Recovery key")
    with connect() as client:
        vm = client.wire("POST", vm_path(name, "recover"), {"recovery_key": key})
    if format_ is Format.JSON:
        print_json(vm)
        return
    say(f"The TPM of {name} opens again, by this host's key. Its recovery key still holds.")
