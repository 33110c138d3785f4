"""Runs inside a guest: seals a value to registers of its TPM 2.0, and opens it again, by /dev/tpmrm0 alone.

    python3 - seal PCR,PCR VALUE FILE        prints `sealed`
    python3 - unseal FILE                    prints the value, or `refused` and the TPM's response code
    python3 - clear                          gives the owner another seed: what was sealed opens no more

Raw commands, since the image has no TPM tools: TPM 2.0 Library, part 3. FILE holds what Create returned and
the registers; it lies on the guest's disk, as LUKS's or BitLocker's does.
"""

import hashlib
import json
import struct
import sys

OWNER, NULL, PASSWORD = 0x40000001, 0x40000007, 0x40000009
SESSIONS, NO_SESSIONS = 0x8002, 0x8001
CLEAR, LOCKOUT = 0x126, 0x4000000A
CREATE_PRIMARY, CREATE, LOAD, UNSEAL = 0x131, 0x153, 0x157, 0x15E
START_AUTH, POLICY_PCR, PCR_READ = 0x176, 0x17F, 0x17E
SHA256, ECC, KEYEDHASH, AES, CFB, P256 = 0xB, 0x23, 0x8, 0x6, 0x43, 0x3


class Refused(Exception):
    pass


def sized(data):
    return struct.pack(">H", len(data)) + data


def auth(session):
    area = struct.pack(">IHBH", session, 0, 1, 0)
    return struct.pack(">I", len(area)) + area


class Tpm:
    def __init__(self):
        self.device = open("/dev/tpmrm0", "r+b", buffering=0)  # noqa: SIM115  (for as long as this runs)

    def run(self, code, body, tag=SESSIONS):
        self.device.write(struct.pack(">HII", tag, 10 + len(body), code) + body)
        answer = self.device.read(4096)
        _, _, result = struct.unpack(">HII", answer[:10])
        if result:
            raise Refused(hex(result))
        return answer[10:]

    def primary(self):
        symmetric = struct.pack(">HHH", AES, 128, CFB)
        # fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt
        public = struct.pack(">HHIH", ECC, SHA256, 0x30472, 0) + symmetric
        public += struct.pack(">HHH", 0x10, P256, 0x10) + sized(b"") + sized(b"")
        sensitive = sized(sized(b"") + sized(b""))
        body = struct.pack(">I", OWNER) + auth(PASSWORD) + sensitive + sized(public) + sized(b"")
        answer = self.run(CREATE_PRIMARY, body + struct.pack(">I", 0))
        return answer[:4]

    def read(self, pcrs):
        answer = self.run(PCR_READ, selection(pcrs), NO_SESSIONS)
        at = 4 + 4 + 2 + 1 + 3 + 4
        values = []
        for _ in pcrs:
            (size,) = struct.unpack(">H", answer[at : at + 2])
            values.append(answer[at + 2 : at + 2 + size])
            at += 2 + size
        return b"".join(values)


def selection(pcrs):
    bits = bytearray(3)
    for pcr in pcrs:
        bits[pcr // 8] |= 1 << pcr % 8
    return struct.pack(">IHB", 1, SHA256, 3) + bytes(bits)


def seal(pcrs, value, path):
    tpm = Tpm()
    parent = tpm.primary()
    digest = hashlib.sha256(tpm.read(pcrs)).digest()
    policy = hashlib.sha256(bytes(32) + struct.pack(">I", POLICY_PCR) + selection(pcrs) + digest).digest()
    # fixedTPM, fixedParent and nothing else: it opens by its policy alone.
    public = struct.pack(">HHI", KEYEDHASH, SHA256, 0x12) + sized(policy)
    public += struct.pack(">H", 0x10) + sized(b"")
    sensitive = sized(sized(b"") + sized(value.encode()))
    body = parent + auth(PASSWORD) + sensitive + sized(public) + sized(b"") + struct.pack(">I", 0)
    answer = tpm.run(CREATE, body)[4:]
    (size,) = struct.unpack(">H", answer[:2])
    private, rest = answer[: 2 + size], answer[2 + size :]
    (size,) = struct.unpack(">H", rest[:2])
    with open(path, "w") as file:
        json.dump({"pcrs": pcrs, "private": private.hex(), "public": rest[: 2 + size].hex()}, file)


def unseal(path):
    with open(path) as file:
        kept = json.load(file)
    tpm = Tpm()
    blob = bytes.fromhex(kept["private"]) + bytes.fromhex(kept["public"])
    item = tpm.run(LOAD, tpm.primary() + auth(PASSWORD) + blob)[:4]
    start = struct.pack(">II", NULL, NULL) + sized(bytes(16)) + sized(b"")
    session = tpm.run(START_AUTH, start + struct.pack(">BHH", 1, 0x10, SHA256), NO_SESSIONS)[:4]
    tpm.run(POLICY_PCR, session + sized(b"") + selection(kept["pcrs"]), NO_SESSIONS)
    answer = tpm.run(UNSEAL, item + auth(struct.unpack(">I", session)[0]))[4:]
    (size,) = struct.unpack(">H", answer[:2])
    return answer[2 : 2 + size].decode()


if sys.argv[1] == "seal":
    seal([int(each) for each in sys.argv[2].split(",")], sys.argv[3], sys.argv[4])
    print("sealed")
elif sys.argv[1] == "clear":
    Tpm().run(CLEAR, struct.pack(">I", LOCKOUT) + auth(PASSWORD))
    print("cleared")
else:
    try:
        print(unseal(sys.argv[2]))
    except Refused as error:
        print("refused", error)
