"""The trust of VMs: attestation, history, policy, schedule, and secrets for those that pass."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Operator, Paging, Viewer, With
from holdfast.spec.attestation import PolicyAnswer, Schedule, TrustView, VmVerdict
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page
from holdfast.spec.released import SecretAdd, SecretRelease, SecretView
from holdfast.spec.trust import TrustPolicy

router = APIRouter(prefix="/v1/vms/{name}/trust", tags=["trust"])


@router.get("")
async def show_trust(services: With, _: Viewer, name: str) -> TrustView:
    return await services.trust.show(name)


@router.post("/attest", status_code=202)
async def attest_vm(services: With, caller: Operator, name: str) -> Operation:
    return await services.trust.begin(name, caller.name)


@router.get("/history")
async def list_verdicts(services: With, _: Viewer, name: str, paging: Paging) -> Page[VmVerdict]:
    return await services.trust.history(name, paging)


@router.get("/policy")
async def show_trust_policy(services: With, _: Viewer, name: str) -> TrustPolicy:
    return await services.trust.policy(name)


@router.put("/policy")
async def set_trust_policy(
    services: With, _: Admin, name: str, policy: TrustPolicy, dry_run: bool = False
) -> PolicyAnswer:
    return await services.trust.set_policy(name, policy, dry_run)


@router.post("/policy/learn")
async def learn_trust_policy(services: With, _: Admin, name: str, dry_run: bool = False) -> PolicyAnswer:
    return await services.trust.learn(name, dry_run)


@router.put("/schedule")
async def set_attestation_schedule(services: With, _: Admin, name: str, schedule: Schedule) -> TrustView:
    return await services.trust.schedule(name, schedule)


@router.get("/secrets")
async def list_guest_secrets(services: With, _: Viewer, name: str) -> list[SecretView]:
    return list(await services.secrets.list(name))


@router.put("/secrets")
async def store_guest_secret(services: With, _: Admin, name: str, request: SecretAdd) -> SecretView:
    return await services.secrets.add(name, request)


@router.delete("/secrets/{secret}", status_code=204)
async def delete_guest_secret(services: With, _: Admin, name: str, secret: str) -> None:
    await services.secrets.delete(name, secret)


@router.post("/release", status_code=202)
async def release_guest_secret(
    services: With, caller: Operator, name: str, request: SecretRelease
) -> Operation:
    return await services.secrets.release(name, request, caller.name)


@router.delete("/identity", status_code=204)
async def forget_tpm_identity(services: With, _: Admin, name: str) -> None:
    await services.trust.forget(name)
