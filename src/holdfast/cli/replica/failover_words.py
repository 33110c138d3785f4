"""`--map-switch` and `--failover-address`, as the API takes them."""

from collections.abc import Sequence
from typing import Any


def failover(map_switch: Sequence[str] | None, failover_address: Sequence[str] | None) -> dict[str, Any]:
    """Raises BadSwitchMap, BadFailoverAddress."""
    from holdfast.spec.failover import parse_failover_address, parse_switch_map

    switches = dict(parse_switch_map(each) for each in map_switch or ())
    addresses = [parse_failover_address(each).model_dump(mode="json") for each in failover_address or ()]
    return {"switches": switches, "addresses": addresses}
