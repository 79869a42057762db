"""The gateway against its own description: whatever is sent, the answers are as described."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from running_app import running
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from trueup.capture import CaptureConfig
from trueup.gateway.app import create_app
from trueup.gateway.config import ServeConfig
from trueup.gateway.openapi import PATHS, describe
from trueup.store import Store

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


async def answer(request: Request) -> JSONResponse:
    if request.method == "GET":
        return JSONResponse({"object": "list", "data": []})
    choice = {"index": 0, "message": {"content": "Hi."}, "finish_reason": "stop"}
    return JSONResponse({"id": "c", "choices": [choice]})


schema = schemathesis.openapi.from_dict(describe())


@pytest.fixture(scope="module")
def url(request, tmp_path_factory):
    upstream = Starlette(routes=[Route("/v1/{p:path}", answer, methods=["GET", "POST"])])
    store = Store(tmp_path_factory.mktemp("openapi") / "store")
    with running(upstream) as up:
        config = ServeConfig(upstream=up)
        with running(create_app(store, config, CaptureConfig(), None), config) as gateway:
            yield gateway
    store.close()


@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_sent_the_answer_is_as_described(case, url: str) -> None:
    case.call_and_validate(base_url=url, checks=CHECKS)


def test_the_description_is_served_and_names_routes_that_exist(url: str) -> None:
    served = httpx.get(f"{url}/openapi.json").json()
    assert served == describe() and served["openapi"].startswith("3.")
    for path, methods in PATHS.items():
        for method in methods:
            assert httpx.request(method, url + path, json={}).status_code not in (404, 405, 500)
