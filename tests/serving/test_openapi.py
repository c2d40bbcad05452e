"""Requests made from the OpenAPI schema: none makes the server fail."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="makes requests from a schema")

import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from tiny_api import asking_rag, running, tiny_app


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    rag = asking_rag(tmp_path_factory.mktemp("openapi"))
    with running(tiny_app(rag, max_tokens=8, max_n=2)) as address:
        yield address


def test_no_request_of_the_schema_makes_the_server_fail(url: str) -> None:
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations: list[Any] = [one.ok() for one in schema.get_all_operations()]  # type: ignore[union-attr]
    assert len(operations) == 10
    for operation in operations:
        try_requests(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))
        if operation.method == "post":  # others take nothing that could be wrong
            try_requests(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))


def try_requests(strategy: SearchStrategy[Any]) -> None:
    """Send some of a strategy's requests."""

    @given(case=strategy)
    @settings(
        max_examples=8,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        if "store" in case.path_parameters:
            case.path_parameters["store"] = "index"
        # The schema cannot say everything: not how long a prompt may be, nor which model is loaded.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    send()
