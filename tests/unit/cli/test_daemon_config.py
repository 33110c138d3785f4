"""Settings of the daemon: precedence and refusals."""

from pathlib import Path

import pytest

from holdfast.daemon_config import BadConfig, load


def test_options_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "h.toml"
    file.write_text('state = "/file"\nruntime = "/file-run"\nlisten = "127.0.0.1:1"\n')
    environment = {"HOLDFAST_RUNTIME": "/env-run", "HOLDFAST_LISTEN": "[::1]:2"}
    found = load({"listen": "localhost:3", "socket": None}, file, environment)
    assert (found.state, found.runtime, found.tcp) == (Path("/file"), Path("/env-run"), ("localhost", 3))
    assert found.unix_socket == Path("/env-run/holdfast.sock")
    assert load({}, None, {"HOLDFAST_LISTEN": "[::1]:2"}).tcp == ("::1", 2)


def test_an_unknown_key_is_refused_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "h.toml"
    file.write_text('# settings\nstate = "/x"\nlisten_on = "y"\n')
    with pytest.raises(BadConfig, match=r"line 3: there is no setting 'listen_on'"):
        load({}, file, {})


@pytest.mark.parametrize("listen", ["8443", "host:", "host:99999", "host:x"])
def test_a_bad_address_is_refused(listen: str) -> None:
    with pytest.raises(BadConfig, match="HOST:PORT"):
        load({"listen": listen}, None, {})
