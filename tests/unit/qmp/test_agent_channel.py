"""Cutting a hostile stream into bounded lines."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.qmp.agent_channel import LONGEST_STRING, Line, LineClipper
from holdfast.qmp.errors import AgentNonsense

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def parts(data: bytes, sizes: list[int]) -> list[bytes]:
    cut, position = [], 0
    for size in sizes:
        cut.append(data[position : position + size])
        position += size
    return [*cut, data[position:]]


@given(st.lists(VALUES, max_size=4), st.lists(st.integers(1, 9), max_size=40))
def test_json_passes_unchanged_however_it_arrives(values: list[object], sizes: list[int]) -> None:
    stream = b"".join(json.dumps(value).encode() + b"\n" for value in values)
    clipper = LineClipper()
    lines = [line for part in parts(stream, sizes) for line in clipper.feed(part)]
    assert [json.loads(line.text) for line in lines] == values
    assert clipper.idle


@given(st.binary(max_size=60).filter(lambda noise: not noise.endswith(b"\xff")))
def test_noise_never_hides_what_is_delimited(noise: bytes) -> None:
    assert LineClipper().feed(noise + b"\xff{}\n")[-1] == Line(b"{}", delimited=True)


def test_a_long_string_is_cut_and_the_rest_is_kept() -> None:
    clipper = LineClipper()
    lines = []
    for part in (b'{"return": {"a": "', *[b"QUJD" * 1000] * 5000, b'", "b": "c"}}\n'):
        lines += clipper.feed(part)
        assert len(clipper._kept) < 2 * LONGEST_STRING
    value = json.loads(lines[0].text)["return"]
    assert len(value["a"]) == LONGEST_STRING
    assert value["b"] == "c"


@pytest.mark.parametrize("escape", [b"\\n", b'\\"', b"\\\\"])
def test_a_cut_never_goes_through_an_escape(escape: bytes) -> None:
    for before in range(4):
        text = b'["' + b"x" * (LONGEST_STRING - before) + escape * 8 + b'", 1]\n'
        (line,) = LineClipper().feed(text)
        value = json.loads(line.text)
        assert value[1] == 1
        assert len(value[0]) <= LONGEST_STRING


def test_a_line_without_end_is_refused() -> None:
    clipper = LineClipper()
    with pytest.raises(AgentNonsense):
        for _ in range(200):
            clipper.feed(b"1," * 50_000)
