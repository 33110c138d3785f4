"""The real-time clock: UTC, but Windows takes it for local time and loses ticks."""

from holdfast.spec.vm import GuestOs


def clock(guest: GuestOs) -> list[str]:
    return ["-rtc", "base=localtime,driftfix=slew" if guest is GuestOs.WINDOWS else "base=utc"]
