"""QEMU's monitor and guest agent protocols: session, typed commands, events, errors."""
