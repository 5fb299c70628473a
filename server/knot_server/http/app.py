"""The HTTP API as a FastAPI application: routes, and how errors and bodies are handled.

Each route finds out who asks, calls a use case and shapes the answer; nothing is decided here.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from knot_server.actor import Actor
from knot_server.http.bodies import (
    ApiTokenInfo,
    ApiTokenList,
    AuditPage,
    AuditQuery,
    CaInfo,
    CertificateOrder,
    CreatedApiToken,
    CreatedSpace,
    CreatedUser,
    Done,
    Health,
    HostKeyOrder,
    JoinTokenBody,
    NewApiToken,
    NewSpace,
    NewToken,
    NewUserBody,
    PersonCertificate,
    RotationInfo,
    RotationList,
    RotationOrder,
    SpaceChange,
    SpaceInfo,
    SpaceList,
    UserInfo,
    UserList,
    moment,
)
from knot_server.http.callers import FORWARDERS, FULL, READERS, VIEWERS, Identify
from knot_server.http.gate import Gate, Known
from knot_server.http.limits import BodyRules
from knot_server.http.metrics import CONTENT_TYPE as METRICS_TYPE
from knot_server.http.metrics import Metrics
from knot_server.http.openapi import (
    API_TOKEN,
    APPLIED,
    APPLY_REQUEST,
    AUDIT,
    CA,
    CERTIFICATE,
    DONE,
    EXAMPLE_KEY,
    FORWARD,
    FORWARD_REQUEST,
    JOIN_TOKEN,
    KRL,
    METRICS,
    ROTATION,
    SPACE,
    TAGS,
    USER,
    Api,
    answers,
    binary,
    body,
    operation_id,
    plain,
)
from knot_server.http.problems import Refuse
from knot_server.http.revocations import revocation_routes
from knot_server.refusals import CODES, Refusals
from knot_server.services import Services
from knot_server.settings import ServerSettings
from knot_server.usecases.auditreading import read_audit
from knot_server.usecases.rotation import What
from knot_server.usecases.tokens import Wanted
from knot_ssh import __version__
from knot_ssh.errors import BadInput, KnotError, MethodNotAllowed, NotFound
from knot_ssh.names import LABEL, Owner
from knot_ssh.wire import (
    Applied,
    ApplyRequest,
    ForwardList,
    ForwardRequest,
    ForwardStatus,
    SpaceReference,
    StopRequest,
    complaint,
)

log = structlog.get_logger(__name__)

_METHODS = ("GET", "POST", "PATCH", "DELETE")
"""All that any route takes."""
SpaceInPath = Annotated[
    SpaceReference, Path(description="The space's id or name.", openapi_examples={"name": {"value": "frontend"}})
]
WhatInPath = Annotated[What, Path(description="Which key.", openapi_examples={"host CA": {"value": "host-ca"}})]
UserInPath = Annotated[Owner, Path(description="The user's name.", openapi_examples={"name": {"value": "bob"}})]
TokenInPath = Annotated[
    str,
    Path(
        description="The token's id, or its name if it is your own; never the token itself.",
        pattern=f"^{LABEL}$",
        openapi_examples={"id": {"value": "0123456789ab"}},
    ),
]


def make_app(services: Services, settings: ServerSettings, url: str) -> FastAPI:
    """The application over these services, which others know under this URL."""
    app = Api(
        title="knot-ssh",
        version=__version__,
        summary="Private port forwarding between development spaces.",
        description="Every error has the form of `Problem`. The status says what kind it is, its `code` says more.",
        openapi_tags=TAGS,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
    )
    refusals = Refusals(CODES)
    refuse = Refuse(refusals, services.audit)
    # what is added last sees a request first
    app.add_middleware(BodyRules, refuse=refuse, settings=settings)
    app.add_middleware(Identify, authenticate=services.tokens.authenticate, on_use=services.audit.used, settings=settings)
    app.add_middleware(Gate, refuse=refuse, known=Known.of(url, settings.known_hosts), described=app)
    _handle_errors(app, refuse)
    app.include_router(_forwards(services))
    app.include_router(_spaces(services))
    app.include_router(_users(services))
    app.include_router(_tokens(services))
    app.include_router(_certificates(services))
    app.include_router(_rotations(services))
    app.include_router(revocation_routes(services))
    app.include_router(_server(services, Metrics(services, refusals)))
    return app


def _forwards(services: Services) -> APIRouter:
    routes = APIRouter(tags=["forwards"])
    path = "/space-io/{space_id}/port"

    @routes.post(
        path + "/forward",
        summary="Make a forward",
        responses=answers(FORWARD, 400, 401, 404, 409),
        openapi_extra=body(FORWARD_REQUEST),
    )
    async def make_forward(space_id: SpaceInPath, body: ForwardRequest, actor: Actor = FORWARDERS) -> ForwardStatus:
        """Forward a local port of this space to a port of another. Once it answers, the port is bound.

        A forward that stands on that local port is replaced: its open connections go on, new ones go to the new target.
        """
        return await services.forwarding.forward(actor, space_id, body)

    @routes.get(path + "/list", summary="List forwards", responses=answers({"forwards": [FORWARD]}, 400, 401, 404))
    async def list_forwards(space_id: SpaceInPath, actor: Actor = VIEWERS) -> ForwardList:
        """The forwards of this space, ordered by local port; of a space that is not running, the persistent ones."""
        return await services.forwarding.listing(actor, space_id)

    @routes.post(
        path + "/stop",
        summary="Stop a forward",
        responses=answers({**FORWARD, "state": "stopped", "mode": None, "address": None, "link": None}, 400, 401, 404, 409),
        openapi_extra=body({"local_port": 8080, "drain": False}),
    )
    async def stop_forward(space_id: SpaceInPath, body: StopRequest, actor: Actor = FORWARDERS) -> ForwardStatus:
        """Stop a forward and reset its connections, or let them drain; answers with what it was, or is until then."""
        return await services.forwarding.stop(actor, space_id, body)

    @routes.post(
        path + "/apply",
        summary="Replace all forwards",
        responses=answers(APPLIED, 400, 401, 404, 409),
        openapi_extra=body(APPLY_REQUEST),
    )
    async def apply_forwards(space_id: SpaceInPath, body: ApplyRequest, actor: Actor = FORWARDERS) -> Applied:
        """Make the forwards of this space exactly these, but for those of its agent's file.

        A list with a mistake is refused as a whole, before anything is changed. What cannot be made for now is told in
        `errors`. What was there already is in none of the lists.
        """
        return await services.forwarding.apply(actor, space_id, body)

    return routes


def _spaces(services: Services) -> APIRouter:
    routes = APIRouter(tags=["spaces"])

    def is_running(space: Any) -> bool:
        return services.roster.runs(space.space_id)

    @routes.get("/api/spaces", summary="List spaces", responses=answers({"spaces": [SPACE]}, 401))
    async def list_spaces(actor: Actor = READERS) -> SpaceList:
        """Your spaces, ordered by name."""
        spaces = await services.spaces.listing(actor)
        return SpaceList(spaces=[SpaceInfo.of(space, running=is_running(space)) for space in spaces])

    @routes.post(
        "/api/spaces",
        status_code=201,
        summary="Make a space",
        responses=answers({**SPACE, "running": False, "last_seen": None, **JOIN_TOKEN}, 400, 401, 409, status=201),
        openapi_extra=body({"name": "backend-api", "zone": "eu"}),
    )
    async def create_space(body: NewSpace, actor: Actor = FULL) -> CreatedSpace:
        """Make a space, and a join token for its agent, which is shown this once."""
        space, token = await services.spaces.create(actor, body.name, body.zone)
        info = SpaceInfo.of(space, running=False)
        return CreatedSpace(**info.model_dump(), join_token=token, hub=services.hub_address)

    @routes.get("/api/spaces/{space_id}", summary="Show a space", responses=answers(SPACE, 400, 401, 404))
    async def show_space(space_id: SpaceInPath, actor: Actor = VIEWERS) -> SpaceInfo:
        """One of your spaces."""
        space = await services.spaces.show(actor, space_id)
        return SpaceInfo.of(space, running=is_running(space))

    @routes.patch(
        "/api/spaces/{space_id}",
        summary="Rename or move a space",
        responses=answers({**SPACE, "name": "api"}, 400, 401, 404, 409),
        openapi_extra=body({"name": "api"}),
    )
    async def change_space(space_id: SpaceInPath, body: SpaceChange, actor: Actor = FULL) -> SpaceInfo:
        """Give a space another name, or move it to another zone.

        Under another name its forwards and open connections go on. In another zone its certificates are void, what is open to
        and from it ends, and forwards across the border fail; its agent is certified anew.
        """
        space = await services.renaming.change(actor, space_id, name=body.name, zone=body.zone)
        return SpaceInfo.of(space, running=is_running(space))

    @routes.delete("/api/spaces/{space_id}", summary="Delete a space", responses=answers(DONE, 400, 401, 404))
    async def delete_space(space_id: SpaceInPath, actor: Actor = FULL) -> Done:
        """Delete a space with its forwards. Its agent is cut off at once, and its certificates are void."""
        await services.spaces.delete(actor, space_id)
        return Done()

    @routes.post(
        "/api/spaces/{space_id}/token",
        status_code=201,
        summary="Make a join token",
        responses=answers(JOIN_TOKEN, 400, 401, 404, status=201),
        openapi_extra=body({"reusable": False}),
    )
    async def create_join_token(space_id: SpaceInPath, body: NewToken | None = None, actor: Actor = FULL) -> JoinTokenBody:
        """Another join token; who joins with it takes the place of the space's agent."""
        _, token = await services.spaces.new_token(actor, space_id, reusable=bool(body and body.reusable))
        return JoinTokenBody(join_token=token, hub=services.hub_address)

    return routes


def _users(services: Services) -> APIRouter:
    routes = APIRouter(tags=["users"])

    @routes.get("/api/users", summary="List users", responses=answers({"users": [USER]}, 401))
    async def list_users(actor: Actor = READERS) -> UserList:
        """All users for an administrator, else yourself; ordered by name."""
        return UserList(users=[UserInfo.of(user) for user in await services.users.listing(actor)])

    @routes.post(
        "/api/users",
        status_code=201,
        summary="Make a user",
        responses=answers({"name": "alice", "token": "knot_…", "expires_at": None}, 400, 401, 403, 409, status=201),
        openapi_extra=body({"name": "alice", "admin": False}),
    )
    async def create_user(body: NewUserBody, actor: Actor = FULL) -> CreatedUser:
        """Make a user and their first API token, which is shown this once. For administrators."""
        user = await services.users.create(actor, body.name, admin=body.admin)
        ends = None if user.expires_at is None else moment(user.expires_at)
        return CreatedUser(name=user.name, token=user.token, expires_at=ends)

    @routes.delete("/api/users/{name}", summary="Delete a user", responses=answers(DONE, 400, 401, 403, 404))
    async def delete_user(name: UserInPath, actor: Actor = FULL) -> Done:
        """Delete a user with all their spaces, cutting off every agent of theirs. For administrators."""
        await services.users.delete(actor, name)
        return Done()

    return routes


def _tokens(services: Services) -> APIRouter:
    routes = APIRouter(tags=["tokens"])

    @routes.get("/api/tokens", summary="List API tokens", responses=answers({"tokens": [API_TOKEN]}, 401))
    async def list_tokens(actor: Actor = READERS) -> ApiTokenList:
        """Your own, or everybody's for an administrator, by user and name; never the tokens themselves."""
        return ApiTokenList(tokens=[ApiTokenInfo.of(view) for view in await services.tokens.listing(actor)])

    @routes.get("/api/token", summary="Show the token in use", responses=answers(API_TOKEN, 401))
    async def show_current_token(actor: Actor = VIEWERS) -> ApiTokenInfo:
        """What the token is good for that the request carries, and until when."""
        return ApiTokenInfo.of(await services.tokens.current(actor))

    @routes.post(
        "/api/tokens",
        status_code=201,
        summary="Make an API token",
        responses=answers({**API_TOKEN, "token": "knot_…"}, 400, 401, 403, 404, 409, status=201),
        openapi_extra=body({"name": "ci", "scope": "forwards", "space": "frontend", "lifetime": 7776000}),
    )
    async def create_token(body: NewApiToken, actor: Actor = FULL) -> CreatedApiToken:
        """Another API token, which is shown this once. It lives no longer than the token that asks."""
        wanted = Wanted(body.name, body.scope, body.space, body.lifetime, body.user)
        view, token = await services.tokens.create(actor, wanted)
        return CreatedApiToken(**ApiTokenInfo.of(view).model_dump(), token=token)

    @routes.delete("/api/tokens/{token_id}", summary="Revoke an API token", responses=answers(DONE, 400, 401, 404))
    async def revoke_token(token_id: TokenInPath, actor: Actor = FULL) -> Done:
        """End a token at once: one of your own, or anybody's for an administrator, who names it by its id."""
        await services.tokens.revoke(actor, token_id)
        return Done()

    return routes


def _certificates(services: Services) -> APIRouter:
    routes = APIRouter(tags=["certificates"])

    @routes.get("/api/ca", summary="Show the certificate authorities", responses=answers(CA, 401))
    async def show_ca(_actor: Actor = READERS) -> CaInfo:
        """The public keys of both CAs, where the hub is, and its own host key."""
        authority = services.authority
        return CaInfo(
            user_ca=authority.user_ca,
            host_ca=authority.host_ca,
            hub=services.hub_address,
            hub_key=services.hub.host_key,
            user_cas=authority.users.keys.lines,
            host_cas=authority.hosts.keys.lines,
            hub_keys=services.hub.host_keys,
            endorsement=authority.endorsement,
        )

    @routes.get("/api/krl", summary="Read what is revoked", response_class=Response, responses=binary(KRL, 401))
    async def show_krl(_actor: Actor = READERS) -> Response:
        """All that is revoked, in OpenSSH's format (PROTOCOL.krl): for `RevokedKeys` of sshd, `RevokedHostKeys` of ssh."""
        return Response(await services.revocations.krl(), media_type="application/octet-stream")

    @routes.post(
        "/api/certificates",
        status_code=201,
        summary="Certify a key of your own",
        responses=answers(CERTIFICATE, 400, 401, 409, status=201),
        openapi_extra=body({"public_key": EXAMPLE_KEY, "lifetime": 600}),
    )
    async def create_certificate(body: CertificateOrder, actor: Actor = FULL) -> PersonCertificate:
        """A short-lived client certificate for your own key, with a principal for every zone you have spaces in."""
        issued, principals = await services.enrolment.certify_person(actor, body.public_key, body.lifetime)
        return PersonCertificate(certificate=issued.line, principals=principals, expires_at=moment(issued.expires_at))

    return routes


def _rotations(services: Services) -> APIRouter:
    routes = APIRouter(tags=["rotations"])

    @routes.get("/api/rotations", summary="List rotations", responses=answers({"rotations": [ROTATION]}, 401, 403))
    async def list_rotations(actor: Actor = READERS) -> RotationList:
        """How each key of the server stands, and who would be left behind by the step that is due. For administrators."""
        return RotationList(rotations=[RotationInfo.of(standing) for standing in await services.rotations.listing(actor)])

    @routes.post(
        "/api/rotations/{what}",
        summary="Rotate a key",
        responses=answers(ROTATION, 400, 401, 403, 409),
        openapi_extra=body({"step": "prepare", "force": False}),
    )
    async def rotate(what: WhatInPath, body: RotationOrder, actor: Actor = FULL) -> RotationInfo:
        """Take the step that is due. Refused while somebody would be left behind, unless forced. For administrators."""
        return RotationInfo.of(await services.rotations.take(actor, what, body.step, force=body.force))

    @routes.post(
        "/api/spaces/{space_id}/host-key",
        summary="Rotate a space's host key",
        responses=answers(SPACE, 400, 401, 404, 409),
        openapi_extra=body({"step": "prepare"}),
    )
    async def rotate_host_key(space_id: SpaceInPath, body: HostKeyOrder, actor: Actor = FULL) -> SpaceInfo:
        """Take the step that is due. `prepare` has the agent make the next key, which is in `host_keys` from then on."""
        space = await services.host_keys.take(actor, space_id, body.step)
        return SpaceInfo.of(space, running=services.roster.runs(space.space_id))

    return routes


def _server(services: Services, metrics: Metrics) -> APIRouter:
    routes = APIRouter(tags=["server"])

    @routes.get("/healthz", summary="Ask for the server's health", responses=answers({"status": "ok"}))
    async def show_health() -> Health:
        """200 when server and store are well. Needs no token."""
        await services.database.ping()
        return Health()

    @routes.get(
        "/api/audit", summary="Read the audit record", responses=answers({"records": [AUDIT], "last": 17}, 400, 401, 404)
    )
    async def show_audit(query: Annotated[AuditQuery, Query()], actor: Actor = READERS) -> AuditPage:
        """Who did what, when: all of it for administrators, else what concerns you. To follow it, ask again with `after`."""
        return AuditPage.of(await read_audit(services.database, actor, query.wanted()))

    @routes.get("/metrics", summary="Read the metrics", response_class=PlainTextResponse, responses=plain(METRICS, 401))
    async def show_metrics(_actor: Actor = READERS) -> PlainTextResponse:
        """What the server has counted, in Prometheus's text format. Names neither users nor spaces."""
        return PlainTextResponse(await metrics.text(), media_type=METRICS_TYPE)

    return routes


def _handle_errors(app: FastAPI, refuse: Refuse) -> None:
    """Every error leaves as a Problem and is counted; what only the log may know stays in the log."""

    @app.exception_handler(KnotError)
    async def known(request: Request, error: KnotError) -> JSONResponse:
        if error.detail:
            log.error("request failed", code=error.code, detail=error.detail)
        return refuse(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return await known(request, BadInput(_complaint(error)))

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        """What the framework answers by itself, in our words."""
        match error.status_code:
            case HTTPStatus.NOT_FOUND:
                return await known(request, NotFound("there is no such route; /openapi.json lists them all"))
            case HTTPStatus.METHOD_NOT_ALLOWED:
                response = await known(request, MethodNotAllowed())
                response.headers["Allow"] = ", ".join(_allowed(app, request))
                return response
            case _:
                return await known(request, BadInput("the body is not valid JSON"))

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> JSONResponse:
        log.error("request failed", exc_info=error)
        return await known(request, KnotError("internal error; the server's log tells more"))


def _allowed(app: FastAPI, request: Request) -> list[str]:
    """The methods that the routes of this path take."""
    matches = {method: [route.matches({**request.scope, "method": method})[0] for route in app.routes] for method in _METHODS}
    return [method for method, found in matches.items() if Match.FULL in found]


def _complaint(error: RequestValidationError) -> str:
    """One line for the first thing that is wrong with a request."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON"
    where, *place = first["loc"]
    if place and isinstance(error.body, dict) and place[0] == error.body.get("kind"):
        del place[0]  # which of a body's forms it is, as the body says itself
    if where == "query":
        del place[1:]
    match first["type"]:
        case "union_tag_invalid":
            return f"kind: must be one of {first['ctx']['expected_tags']}"
        case "union_tag_not_found" if isinstance(error.body, dict):
            return "kind: is missing"
    if not place and first["type"] != "value_error":
        return "the body must be a JSON object, sent as application/json"
    return complaint(place, first["type"], first["msg"])
