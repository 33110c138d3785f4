"""The trust of VMs: attestation, history, policy, schedule."""

from fastapi import APIRouter

from holdfast.api.access import Admin, Operator, Paging, Viewer, With
from holdfast.spec.attestation import PolicyAnswer, Schedule, TrustView, VmVerdict
from holdfast.spec.operation import Operation
from holdfast.spec.paging import Page
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


@router.delete("/identity", status_code=204)
async def forget_tpm_identity(services: With, _: Admin, name: str) -> None:
    await services.trust.forget(name)
