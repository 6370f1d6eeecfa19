"""The cluster that `KUBECONFIG` names; without one these tests are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from runs_api import Api

from operators import Operator, the_operator


@pytest.fixture(scope="session")
def api() -> Api:
    """The API server."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG is not set")
    return Api()


@pytest.fixture(scope="session")
def operator(api: Api) -> Iterator[Operator]:
    """The one that looks after runs."""
    found = the_operator(api)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture
def namespace(api: Api) -> Iterator[str]:
    """Of this test alone."""
    with api.namespace() as name:
        yield name
