from collections.abc import Iterator

import pytest
from runs_api import Api

from operators import Operator, the_operator


@pytest.fixture(scope="session")
def api() -> Api:
    """The API server."""
    return Api()


@pytest.fixture(scope="session")
def operator(api: Api) -> Iterator[Operator]:
    """The operator that looks after runs."""
    found = the_operator(api)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture
def namespace(api: Api) -> Iterator[str]:
    with api.namespace() as name:
        yield name
