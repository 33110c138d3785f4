"""Keylime's verification of a quote with its event log, timed; runs in Keylime's own environment.

Reads one JSON object on standard input (see `bench.trust`), prints one: the milliseconds of each run,
or why it refused. It does what Keylime's verifier does with an agent's quote and measured boot log:
read the key, check the quote, parse the log, compare its PCRs with the quote's, evaluate the policy.
"""

import base64
import json
import logging
import sys
import time

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from keylime.mba import mba
from keylime.tpm import tpm2_objects, tpm_util


def main() -> None:
    logging.disable(logging.CRITICAL)
    asked = json.load(sys.stdin)
    mba.load_imports(skip_custom_policies=True)
    times = []
    for number in range(asked["runs"] + 1):
        began = time.perf_counter()
        refused = verify(asked)
        if refused:
            print(json.dumps({"refused": refused}))
            return
        if number:
            times.append((time.perf_counter() - began) * 1000)
    print(json.dumps({"ms": times}))


def verify(asked: dict) -> str:
    """Why it refuses; empty where it accepts."""
    blob = {name: base64.b64decode(asked[name]) for name in ("key", "attest", "signature", "pcrs", "nonce")}
    public = tpm2_objects.pubkey_from_tpm2b_public(blob["key"])
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    quoted = tpm_util.checkquote(
        pem, blob["nonce"], blob["signature"], blob["attest"], blob["pcrs"], "sha256"
    )
    replayed, _, events, failure = mba.bootlog_parse(asked["log"], "sha256")
    if failure:
        return f"the log: {[event.event_id for event in failure.events]}"
    wrong = [pcr for pcr, value in replayed.items() if int(quoted[int(pcr)], 16) != value]
    if wrong:
        return f"PCRs {wrong} do not replay"
    failure = mba.bootlog_evaluate("{}", events, {int(pcr) for pcr in quoted}, "bench")
    return f"the policy: {[event.event_id for event in failure.events]}" if failure else ""


if __name__ == "__main__":
    main()
