"""Stop every VM that runs: `./run down --vms` calls it before it stops the daemon."""

import json
import subprocess
import sys
from pathlib import Path

HOLDFAST = str(Path(sys.executable).parent / "holdfast")
STATES = ("running", "paused", "starting")


def main() -> int:
    listed = subprocess.run([HOLDFAST, "vm", "list", "--format", "json"], check=True, capture_output=True)
    page = json.loads(listed.stdout)
    vms = page["items"] if isinstance(page, dict) else page
    failed = 0
    for name in [vm["name"] for vm in vms if vm["state"] in STATES]:
        sys.stderr.write(f"$ holdfast vm stop {name}\n")
        failed += subprocess.run([HOLDFAST, "vm", "stop", name], check=False).returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
