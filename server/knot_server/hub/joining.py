"""The `knot-join` subsystem: an agent proves to hold a key and has it enrolled for the space of its token."""

from __future__ import annotations

import secrets

import structlog

from knot_keys.keyfiles import fingerprint, parse_public_key
from knot_keys.possession import for_joining, is_proof
from knot_server.hub.doorkeeper import TOKEN_REFUSED, Joiner, Session
from knot_server.refusals import Refusals
from knot_server.usecases.enrolment import Enrolment
from knot_ssh.errors import JoinRefused
from knot_ssh.rpc import Peer
from knot_ssh.wire import JoinChallenge, JoinRequest, Membership, Nothing

log = structlog.get_logger(__name__)


async def serve_joiner(enrolment: Enrolment, refusals: Refusals, joiner: Joiner, opened: Session) -> None:
    """Talk to one joining agent until it hangs up."""
    nonce = secrets.token_hex(32)

    async def challenge(_request: Nothing) -> JoinChallenge:
        return JoinChallenge(nonce=nonce)

    async def enrol(request: JoinRequest) -> Membership:
        key = parse_public_key(request.public_key)
        if not is_proof(key, for_joining(nonce, joiner.token_id), request.signature):
            raise JoinRefused("the signature does not prove possession of the key")
        try:
            membership = await enrolment.redeem(joiner.token_id, key, address=joiner.address)
        except JoinRefused as error:
            log.warning("join refused", reason=str(error), token=joiner.token_id, key=fingerprint(key))
            refusals.count(TOKEN_REFUSED)
            await enrolment.refuse_join(joiner.token_id, key, TOKEN_REFUSED, str(error), joiner.address)
            raise
        log.info("joined", space=membership.space, owner=membership.owner, zone=membership.zone, key=fingerprint(key))
        return membership

    await Peer(opened.stdin, opened.stdout, {"join.challenge": (Nothing, challenge), "join.enrol": (JoinRequest, enrol)}).run()
