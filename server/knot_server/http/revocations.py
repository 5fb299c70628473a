"""The routes of revocation: what is to be void, and what is."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter

from knot_server.actor import Actor
from knot_server.http.bodies import (
    Revocation,
    RevocationInfo,
    RevocationInfos,
    RevokeCertificate,
    RevokeKey,
    RevokeSpace,
    RevokeUser,
    VoidedBody,
)
from knot_server.http.callers import FULL, READERS
from knot_server.http.openapi import REVOCATION, VOIDED, answers, body
from knot_server.services import Services
from knot_server.usecases.revoking import Revoking, Voided


def revocation_routes(services: Services) -> APIRouter:
    routes = APIRouter(tags=["revocations"])

    @routes.get("/api/revocations", summary="List what is revoked", responses=answers({"revocations": [REVOCATION]}, 401))
    async def list_revocations(actor: Actor = READERS) -> RevocationInfos:
        """What of yours is revoked and has not run out yet; for an administrator, of everybody's."""
        return RevocationInfos(revocations=[RevocationInfo.of(entry) for entry in await services.revoking.listing(actor)])

    @routes.post(
        "/api/revocations",
        status_code=201,
        summary="Revoke",
        responses=answers(VOIDED, 400, 401, 403, 404, 409, status=201),
        openapi_extra=body({"kind": "space", "space": "backend-api", "reason": "laptop lost"}),
    )
    async def create_revocation(body: Revocation, actor: Actor = FULL) -> VoidedBody:
        """Make a certificate, all of a space, all of a user or a key void at once, for good.

        Once it answers, the hub and every connected agent decide by it, and what it had opened is cut.
        """
        return VoidedBody(**asdict(await _revoked(services.revoking, actor, body)))

    return routes


async def _revoked(revoking: Revoking, actor: Actor, body: Revocation) -> Voided:
    match body.root:
        case RevokeCertificate() as order:
            return await revoking.certificate(actor, int(order.serial), order.reason, user=order.user)
        case RevokeSpace() as order:
            return await revoking.space(actor, order.space, order.reason, user=order.user)
        case RevokeUser() as order:
            return await revoking.user(actor, order.user, order.reason)
        case RevokeKey() as order:
            return await revoking.key(actor, order.key, order.reason, user=order.user)
