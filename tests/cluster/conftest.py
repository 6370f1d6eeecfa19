"""The cluster that `KUBECONFIG` names, where `.ci/cluster up` has put the images.

Without one, tests say why they are skipped; under CI that is a failure, for tests that do not run are not passed.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import platform_release
import pytest
from commands import state_of
from runs_api import Api
from stores import DIGITS, new_name, pack_digits

from operators import Operator, the_operator


def _missing() -> str:
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG is not set: `.ci/cluster up` starts a cluster (root, Go, Debian's packages)"
    missing = [program for program in ("kubectl", "helm") if shutil.which(program) is None]
    return f"no {' and no '.join(missing)} in PATH" if missing else ""


@pytest.fixture(scope="session")
def api() -> Api:
    """The API server."""
    reason = _missing()
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    return Api()


@pytest.fixture(scope="session")
def platform(api: Api) -> None:
    """The chart's release; it stays for the other tests, and for a look at it."""
    assert api.of("Namespace"), "the API server answers"
    platform_release.install()


@pytest.fixture(scope="session")
def operator(api: Api, request: pytest.FixtureRequest) -> Iterator[Operator]:
    """The one that looks after runs: the platform's where its image is on the nodes."""
    if os.environ.get("SCHOLARCH_TEST_IMAGE"):
        request.getfixturevalue("platform")
    found = the_operator(api)
    try:
        yield found
    finally:
        found.end()


@pytest.fixture(scope="session")
def image(platform: None) -> str:
    """Of Scholarch, on the nodes; the platform reads where its runs are."""
    assert platform is None
    return platform_release.IMAGE


@pytest.fixture(scope="session")
def digits(image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of some handwritten digits in the platform's store."""
    assert image
    pack_digits(tmp_path_factory.mktemp("digits"), 400)
    return DIGITS


@pytest.fixture
def name(api: Api) -> Iterator[str]:
    """Of a new run in the team's namespace, which is gone afterwards."""
    yield from new_name(api, "digits")


@pytest.fixture
def namespace(api: Api, request: pytest.FixtureRequest) -> Iterator[str]:
    """Of this test alone; where the test fails, what is in it is printed."""
    with api.namespace() as name:
        yield name
        if getattr(request.node, "failed", False):
            sys.stderr.write(state_of(name))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: Any) -> Any:
    """Tells fixtures that their test failed."""
    report = yield
    item.failed = getattr(item, "failed", False) or report.failed
    return report
