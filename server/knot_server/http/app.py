"""The HTTP API as a FastAPI application: routes, and how errors and bodies are handled.

Each route finds out who asks, calls a use case and shapes the answer; nothing is decided here.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from knot_server.actor import Actor
from knot_server.http.bodies import (
    CaInfo,
    CertificateOrder,
    CreatedSpace,
    CreatedUser,
    Done,
    Health,
    JoinTokenBody,
    NewSpace,
    NewToken,
    NewUserBody,
    PersonCertificate,
    Problem,
    SpaceChange,
    SpaceInfo,
    SpaceList,
    UserInfo,
    UserList,
    moment,
)
from knot_server.http.limits import BodyRules
from knot_server.services import Services
from knot_ssh import __version__
from knot_ssh.errors import BadInput, KnotError, NotAuthenticated, NotFound
from knot_ssh.names import Owner
from knot_ssh.wire import Applied, ApplyRequest, ForwardList, ForwardRequest, ForwardStatus, StopRequest, complaint

log = structlog.get_logger(__name__)

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "Bad input."},
    401: {"model": Problem, "description": "No or bad token."},
    403: {"model": Problem, "description": "Only an administrator may do that."},
    404: {"model": Problem, "description": "No such thing of yours."},
    409: {"model": Problem, "description": "Not running, other zone, port or name taken."},
    413: {"model": Problem, "description": "Body too large."},
    415: {"model": Problem, "description": "The body is not sent as application/json."},
    503: {"model": Problem, "description": "The store or an agent did not answer."},
}

_FRAMEWORK: dict[int, tuple[str, str]] = {
    HTTPStatus.NOT_FOUND: ("there is no such route; /openapi.json lists them all", NotFound.code),
    HTTPStatus.METHOD_NOT_ALLOWED: ("this route does not take that method; /openapi.json lists them all", "method_not_allowed"),
}
"""What the framework answers by itself, in our words: sentence and code."""

_bearer = HTTPBearer(auto_error=False, description="An API token, from `knot user create` or `knot server init`.")


def make_app(services: Services) -> FastAPI:
    """The application over these services."""
    app = _Api(
        title="knot-ssh",
        version=__version__,
        description="Private port forwarding between development spaces.",
        docs_url=None,
        redoc_url=None,
        responses=PROBLEMS,
    )
    app.add_middleware(BodyRules)
    _handle_errors(app)
    app.include_router(_forwards(services))
    app.include_router(_spaces(services))
    app.include_router(_users(services))
    app.include_router(_certificates(services))

    @app.get("/healthz", tags=["server"])
    async def health() -> Health:
        """Whether server and store are well."""
        await services.database.ping()
        return Health()

    return app


class _Api(FastAPI):
    """Describes itself as it behaves: what FastAPI would answer with 422 is 400 here."""

    def openapi(self) -> dict[str, Any]:
        description = super().openapi()
        for methods in description["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
        return description


def _caller(services: Services) -> Any:
    async def caller(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Actor:
        if credentials is None:
            raise NotAuthenticated
        return await services.users.authenticate(credentials.credentials)

    return Depends(caller)


def _forwards(services: Services) -> APIRouter:
    caller = _caller(services)
    routes = APIRouter(tags=["forwards"])
    path = "/space-io/{space_id}/port"

    @routes.post(path + "/forward")
    async def forward(space_id: str, body: ForwardRequest, actor: Actor = caller) -> ForwardStatus:
        """Forward a local port of this space to a port of another; once it answers, the port is bound."""
        return await services.forwarding.forward(actor, space_id, body)

    @routes.get(path + "/list")
    async def list_forwards(space_id: str, actor: Actor = caller) -> ForwardList:
        """The forwards of this space."""
        return await services.forwarding.listing(actor, space_id)

    @routes.post(path + "/stop")
    async def stop(space_id: str, body: StopRequest, actor: Actor = caller) -> ForwardStatus:
        """Stop a forward and reset its connections, or let them drain."""
        return await services.forwarding.stop(actor, space_id, body)

    @routes.post(path + "/apply")
    async def apply(space_id: str, body: ApplyRequest, actor: Actor = caller) -> Applied:
        """Make the forwards of this space exactly these. What cannot be made for now is told in `errors`."""
        return await services.forwarding.apply(actor, space_id, body)

    return routes


def _spaces(services: Services) -> APIRouter:
    caller = _caller(services)
    routes = APIRouter(tags=["spaces"])

    def is_running(space: Any) -> bool:
        return services.roster.get(space.space_id) is not None

    @routes.get("/api/spaces")
    async def list_spaces(actor: Actor = caller) -> SpaceList:
        """Your spaces."""
        spaces = await services.spaces.listing(actor)
        return SpaceList(spaces=[SpaceInfo.of(space, running=is_running(space)) for space in spaces])

    @routes.post("/api/spaces", status_code=201)
    async def create_space(body: NewSpace, actor: Actor = caller) -> CreatedSpace:
        """Make a space, and a join token for its agent."""
        space, token = await services.spaces.create(actor, body.name, body.zone)
        info = SpaceInfo.of(space, running=False)
        return CreatedSpace(**info.model_dump(), join_token=token, hub=services.hub_address)

    @routes.patch("/api/spaces/{space_id}")
    async def change_space(space_id: str, body: SpaceChange, actor: Actor = caller) -> SpaceInfo:
        """Give a space another name; its forwards and open connections go on."""
        space = await services.renaming.rename(actor, space_id, body.name)
        return SpaceInfo.of(space, running=is_running(space))

    @routes.delete("/api/spaces/{space_id}")
    async def delete_space(space_id: str, actor: Actor = caller) -> Done:
        """Delete a space; its agent is cut off at once."""
        await services.spaces.delete(actor, space_id)
        return Done()

    @routes.post("/api/spaces/{space_id}/token", status_code=201)
    async def new_token(space_id: str, body: NewToken | None = None, actor: Actor = caller) -> JoinTokenBody:
        """Another join token; who joins with it takes the place of the space's agent."""
        _, token = await services.spaces.new_token(actor, space_id, reusable=bool(body and body.reusable))
        return JoinTokenBody(join_token=token, hub=services.hub_address)

    return routes


def _users(services: Services) -> APIRouter:
    caller = _caller(services)
    routes = APIRouter(tags=["users"])

    @routes.get("/api/users")
    async def list_users(actor: Actor = caller) -> UserList:
        """All users for an administrator, else yourself."""
        return UserList(users=[UserInfo.of(user) for user in await services.users.listing(actor)])

    @routes.post("/api/users", status_code=201)
    async def create_user(body: NewUserBody, actor: Actor = caller) -> CreatedUser:
        """Make a user and their first API token (administrators)."""
        user = await services.users.create(actor, body.name, admin=body.admin)
        return CreatedUser(name=user.name, token=user.token)

    @routes.delete("/api/users/{name}")
    async def delete_user(name: str, actor: Actor = caller) -> Done:
        """Delete a user with all their spaces (administrators)."""
        await services.users.delete(actor, Owner(name))
        return Done()

    return routes


def _certificates(services: Services) -> APIRouter:
    caller = _caller(services)
    routes = APIRouter(tags=["certificates"])

    @routes.get("/api/ca")
    async def ca(_actor: Actor = caller) -> CaInfo:
        """The public keys of both CAs."""
        return CaInfo(user_ca=services.authority.user_ca, host_ca=services.authority.host_ca, hub=services.hub_address)

    @routes.post("/api/certificates", status_code=201)
    async def certify(body: CertificateOrder, actor: Actor = caller) -> PersonCertificate:
        """A short-lived client certificate for your own key, for every zone you have spaces in."""
        issued, principals = await services.enrolment.certify_person(actor, body.public_key, body.lifetime)
        return PersonCertificate(certificate=issued.line, principals=principals, expires_at=moment(issued.expires_at))

    return routes


def _handle_errors(app: FastAPI) -> None:
    """Every error leaves as a Problem; what only the log may know stays in the log."""

    @app.exception_handler(KnotError)
    async def known(_request: Request, error: KnotError) -> JSONResponse:
        if error.detail:
            log.error("request failed", code=error.code, detail=error.detail)
        return _problem(error.http_status, str(error), error.code)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return _problem(BadInput.http_status, _complaint(error), BadInput.code)

    @app.exception_handler(HTTPException)
    async def framework(_request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == HTTPStatus.BAD_REQUEST:  # the framework could not read the body
            return _problem(BadInput.http_status, "the body is not valid JSON", BadInput.code)
        response = _problem(error.status_code, *_FRAMEWORK.get(error.status_code, (str(error.detail), KnotError.code)))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unknown(_request: Request, error: Exception) -> JSONResponse:
        log.error("request failed", exc_info=error)
        return _problem(500, "internal error; the server's log tells more", KnotError.code)


def _complaint(error: RequestValidationError) -> str:
    """One line for the first thing that is wrong with a request."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return "the body is not valid JSON"
    place = first["loc"][1:]  # the first step says "body" or "path"
    return (
        complaint(place, first["type"], first["msg"]) if place else "the body must be a JSON object, sent as application/json"
    )


def _problem(status: int, message: str, code: str) -> JSONResponse:
    return JSONResponse(Problem(error=message, code=code).model_dump(), status_code=status)
