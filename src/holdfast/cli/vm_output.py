"""A VM for people: its sheet, with the names of its images and the work under way looked up."""

from typing import Any

from holdfast.cli.output import Format, print_json
from holdfast.spec.errors import RemoteError


def show_vm(client: Any, vm: dict[str, Any], format_: Format) -> None:
    """Print a VM in wire form."""
    import sys
    from urllib.parse import quote

    from holdfast.cli.sheets.vm import image_digests, vm_sheet

    if format_ is Format.JSON:
        print_json(vm)
        return
    names: dict[str, str] = {}
    for digest in image_digests(vm):
        # An image that has gone meanwhile is shown by its digest.
        try:
            image = client.wire("GET", f"/v1/images/{quote(digest, safe='')}")
        except RemoteError:
            continue
        if image["names"]:
            names[digest] = image["names"][0]
    operation = None
    if vm["operation"]:
        operation = client.operation(vm["operation"]).model_dump(mode="json")
    sys.stdout.write(vm_sheet(vm, names, operation))
