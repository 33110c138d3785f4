"""Text of a guest as it may be shown: it can say anything."""


def printable(text: str, most: int) -> str:
    """`text` without control characters, at most `most` characters long."""
    cut = text if len(text) <= most else text[: most - 3] + "..."
    if cut.isprintable():
        return cut
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in cut)
