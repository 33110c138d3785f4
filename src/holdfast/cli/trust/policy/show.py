"""`holdfast trust policy show`."""

from holdfast.cli.names import VmArgument

EXAMPLE = "holdfast trust policy show web > policy.json"


def command(name: VmArgument) -> None:
    """Print a VM's policy as JSON, to be edited and given to `policy set`."""
    from holdfast.cli.output import print_json
    from holdfast.cli.session import connect
    from holdfast.cli.trust_paths import trust_path

    with connect() as client:
        print_json(client.wire("GET", trust_path(name, "policy")))
