"""What was wrong with a request is said without a word of any secret in it."""

import importlib
import pkgutil
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

import holdfast.spec
from holdfast.api.errors import SECRET_FIELDS
from holdfast.spec.model import Frozen

SECRET = "cG9tZWdyYW5hdGU="


@pytest.fixture
def raw(daemon: Any) -> httpx.Client:
    return httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.socket)), base_url="http://x")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/v1/vms/x/trust/secrets", {"content": SECRET}),
        ("PUT", "/v1/vms/x/trust/secrets", {"name": "a", "content": [SECRET]}),
        ("PUT", "/v1/vms/x/trust/secrets", {"name": "a", "contents": SECRET}),
        ("PUT", "/v1/vms/x/trust/secrets", {"name": "a", "content": SECRET * 10_000}),
        ("PUT", "/v1/vms/x/trust/secrets", [SECRET]),
        ("PUT", "/v1/vms/x/trust/secrets", SECRET),
        ("POST", "/v1/vms/x/recover", {"recovery": SECRET}),
        ("POST", "/v1/vms/x/recover", {"recovery_key": {"is": SECRET}}),
        ("POST", "/v1/vms/x/firmware-state/export", {"passphrase": [SECRET]}),
        ("POST", "/v1/vms/x/firmware-state/export", {"passphrase": SECRET, "recipient": 1}),
        ("POST", "/v1/vms/x/exec", {"stdin": SECRET}),
        ("POST", "/v1/vms", {"name": "x", "cloud_init": {"user_data": [SECRET]}}),
    ],
)
def test_no_secret_comes_back(raw: httpx.Client, method: str, path: str, body: Any) -> None:
    answer = raw.request(method, path, json=body)
    assert answer.json()["id"] == "bad-request", answer.text
    assert SECRET not in answer.text and SECRET[:-1] not in answer.text


def test_a_body_that_is_no_json_does_not_come_back(raw: httpx.Client) -> None:
    for kind in ("application/json", "text/plain"):
        answer = raw.put("/v1/vms/x/trust/secrets", content=SECRET, headers={"content-type": kind})
        assert answer.json()["id"] == "bad-request" and SECRET[:-1] not in answer.text


def test_other_values_are_told(raw: httpx.Client) -> None:
    assert raw.post("/v1/vms", json={"name": "../x"}).json()["value"] == "../x"
    assert raw.get("/v1/vms?limit=0").json()["value"] == "0"


def test_every_field_that_hides_itself_is_known_as_a_secret() -> None:
    for module in pkgutil.iter_modules(holdfast.spec.__path__):
        importlib.import_module(f"holdfast.spec.{module.name}")
    models, hidden = [Frozen], set()
    while models:
        model = models.pop()
        models += model.__subclasses__()
        for name, field in model.model_fields.items():
            if model.__module__.startswith("holdfast.spec") and (
                not field.repr or SecretStr.__name__ in str(field.annotation)
            ):
                hidden.add(name)
    assert {"content", "passphrase", "recovery_key", "token"} <= hidden <= SECRET_FIELDS
