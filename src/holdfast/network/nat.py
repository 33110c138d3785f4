"""Address translation for a switch: one nftables table, replaced whole in one transaction.

New connections from outside and from other switches are dropped; the table's name carries the state
folder's mark. Another firewall's `drop` still wins (nft(8): every base chain of a hook must accept).
"""

from holdfast.host.processes import Processes
from holdfast.network.links import NetworkFailed

_SECONDS = 30.0


def table_prefix(mark: str) -> str:
    return f"holdfast_{mark[:4]}_"


def rules(table: str, bridge: str, subnet: str) -> str:
    """What `nft -f` reads: makes or replaces the table."""
    return f"""table inet {table} {{}}
delete table inet {table}
table inet {table} {{
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{bridge}" oifname "{bridge}" accept
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {subnet} oifname != "{bridge}" masquerade
  }}
}}
"""


async def _nft(processes: Processes, text: str) -> None:
    done = await processes.run(["nft", "-f", "-"], owner="host", stdin=text.encode(), timeout=_SECONDS)
    if done.returncode != 0:
        raise NetworkFailed(
            "nft refused the rules of a switch",
            cure="Check that the kernel has nftables with NAT.",
            detail={"log": done.stderr[-2000:].decode(errors="replace")},
        )


async def set_rules(processes: Processes, table: str, bridge: str, subnet: str) -> None:
    await _nft(processes, rules(table, bridge, subnet))


async def remove_rules(processes: Processes, table: str) -> None:
    await _nft(processes, f"table inet {table} {{}}\ndelete table inet {table}\n")


async def tables(processes: Processes, prefix: str) -> list[str]:
    """Our tables that the kernel has now."""
    done = await processes.run(["nft", "list", "tables", "inet"], owner="host", timeout=_SECONDS)
    names = (line.split()[-1] for line in done.stdout.decode(errors="replace").splitlines() if line.strip())
    return [name for name in names if name.startswith(prefix)]
