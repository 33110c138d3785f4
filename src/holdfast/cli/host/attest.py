"""`holdfast host attest`."""

from holdfast.cli.output import Format, FormatOption

EXAMPLE = "holdfast host attest --format json"


def command(format_: FormatOption = Format.TABLE) -> None:
    """Prove to the verifier of this host, now, how it has booted."""
    from holdfast.cli.output import print_json, say
    from holdfast.cli.session import connect

    with connect() as client:
        standing = client.wire("POST", "/v1/host/attest")
    if format_ is Format.JSON:
        print_json(standing)
        return
    say(f"{standing['verifier']}: {standing['verdict']['verdict']}, until {standing['expires']}")
    for finding in standing["verdict"]["findings"]:
        say(f"  {finding['severity']}: {finding['text']} ({finding['id']})")
