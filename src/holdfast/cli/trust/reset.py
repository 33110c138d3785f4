"""`holdfast trust reset`."""

from holdfast.cli.names import VmArgument
from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast trust reset web"


def command(name: VmArgument, format_: FormatOption = Format.TABLE) -> None:
    """Forget the identity of a VM's TPM: the next attestation enrols the one that is there then."""
    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect
    from holdfast.cli.trust_paths import trust_path

    with connect() as client:
        client.wire("DELETE", trust_path(name, "identity"))
    if format_ is Format.JSON:
        print_json({"forgotten": name})
    else:
        say(f"the identity of the TPM of {name!r} is forgotten")
