"""Whatever a client makes of the OpenAPI document, the server does not break."""

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.fixture(scope="module")
def operations(server):
    schema = schemathesis.openapi.from_dict(server.call("/openapi.json")[1])
    schema.config.update(base_url=server.url)
    return {(found.ok().method.upper(), found.ok().path): found.ok() for found in schema.get_all_operations()}


PATHS = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize", "/detokenize"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
def test_no_request_breaks_the_server(server, operations, path, mode):
    strategy = operations["POST", path].as_strategy(generation_mode=schemathesis.GenerationMode[mode])
    statuses = set()
    session = requests.Session()

    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy, model=st.sampled_from(["letters", "short", "tiny"]))
    def attack(case, model):
        # Most of what is made up names no model that there is: then the rest of it would never be looked at.
        if isinstance(case.body, dict):
            case.body["model"] = model
            if mode == "POSITIVE":
                case.body["max_tokens"] = 2
        answer = case.call(session=session, timeout=20)
        statuses.add(answer.status_code)
        assert answer.status_code < 500, answer.text
        if answer.status_code >= 400:
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    attack()
    assert statuses & {200, 400}
    assert server.idle()


def test_the_document_names_every_route(operations):
    assert {path for _, path in operations} == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/models",
        "/v1/models/{name}",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/health",
        "/metrics",
    }
