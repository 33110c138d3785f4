"""The application over a real UNIX socket, with fake VMs."""

from pathlib import Path
from typing import Any

import httpx
import pytest

from holdfast.api.client import Client, Place
from holdfast.spec.errors import RemoteError
from holdfast.spec.operation import Operation, OperationState


@pytest.fixture
def client(daemon: Any) -> Client:
    return Client(Place(socket=daemon.socket))


@pytest.fixture
def raw(daemon: Any) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.socket)), base_url="http://x")


def make(client: Client, name: str) -> Operation:
    return Operation.model_validate(client.wire("POST", "/v1/vms", {"name": name}))


def test_create_is_followed_to_its_end(client: Client) -> None:
    steps = list(client.follow(make(client, "a b")))
    assert steps[-1].state is OperationState.SUCCEEDED
    assert client.vm("a b").name == "a b"
    assert [vm.name for vm in client.vms().items] == ["a b"]


def test_following_survives_a_restart_of_the_door(daemon: Any, client: Client) -> None:
    daemon.operations.hold.clear()
    seen = []
    for step in client.follow(make(client, "a")):
        seen.append(step.state)
        if len(seen) == 1:

            async def restart() -> None:
                await daemon.server.stop(0)
                await daemon.listen()
                daemon.operations.hold.set()

            daemon.call(restart())
    assert seen[-1] is OperationState.SUCCEEDED


def test_a_refusal_keeps_its_words(client: Client) -> None:
    with pytest.raises(RemoteError) as caught:
        client.vm("nobody")
    assert caught.value.as_dict() == {
        "id": "vm-not-found", "kind": "NotFound", "message": "there is no VM 'nobody'",
        "value": "nobody", "cure": "List them.", "detail": {},
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../x", "x" * 300, "a\nb", "\U0001f419", ""])
def test_a_hostile_name_is_a_bad_request_that_names_the_field(raw: httpx.Client, name: str) -> None:
    answer = raw.post("/v1/vms", json={"name": name})
    assert answer.status_code == 422
    assert answer.json()["id"] == "bad-request"
    assert answer.json()["detail"]["findings"][0]["field"] == "name"


def test_a_defect_tells_an_id_and_nothing_else(raw: httpx.Client) -> None:
    answer = raw.get("/v1/vms/broken")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["value"]


def test_every_answer_has_a_request_id_of_its_own(raw: httpx.Client) -> None:
    assert len({raw.get("/v1/health").headers["x-request-id"] for _ in range(3)}) == 3


def test_a_huge_body_is_refused(raw: httpx.Client) -> None:
    answer = raw.post("/v1/vms", content=b"x" * (3 * 1024**2))
    assert answer.json()["id"] == "body-too-large"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "offset=-1", "state=flying"])
def test_a_page_beyond_the_limits_is_refused(raw: httpx.Client, query: str) -> None:
    assert raw.get(f"/v1/vms?{query}").json()["id"] == "bad-request"


def test_an_unknown_address_and_a_wrong_method(raw: httpx.Client) -> None:
    assert raw.get("/v1/nothing").json()["id"] == "no-such-address"
    assert raw.put("/v1/vms").status_code == 405


def test_an_upload_becomes_an_image(client: Client, tmp_path: Path) -> None:
    file = tmp_path / "disc.iso"
    file.write_bytes(b"x" * 3_000_000)
    upload = client.upload(file)
    body = {"upload": upload.id, "name": "disc", "kind": "iso"}
    operation = Operation.model_validate(client.wire("POST", "/v1/images/import", body))
    assert list(client.follow(operation))[-1].state is OperationState.SUCCEEDED
    assert client.wire("GET", "/v1/images/disc")["stored_size"] == 3_000_000
    with pytest.raises(RemoteError) as caught:
        client.wire("POST", "/v1/images/import", {**body, "upload": "../../etc/shadow"})
    assert caught.value.wire_id == "upload-not-found"


def test_metrics_count_by_route_template(raw: httpx.Client) -> None:
    raw.get("/v1/vms/nobody")
    text = raw.get("/metrics").text
    assert 'holdfast_requests_total{method="GET",route="/v1/vms/{name}",status="404"} 1.0' in text
    assert 'holdfast_vms{state="off"} 0.0' in text


def test_events_resume_after_the_last_id(daemon: Any, raw: httpx.Client) -> None:
    for number in range(5):
        daemon.call(daemon.events.emit("test", "x", {"number": number}))
    with raw.stream("GET", "/v1/events", headers={"Last-Event-ID": "3"}) as answer:
        ids = []
        for line in answer.iter_lines():
            if line.startswith("id: "):
                ids.append(int(line[4:]))
            if len(ids) == 2:
                break
    assert ids == [4, 5]
