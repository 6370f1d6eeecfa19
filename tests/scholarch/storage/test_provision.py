"""Buckets and access keys, on a real MinIO."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from minio_server import MinioServer
from scholarch.errors import UserError
from scholarch.storage.provision import Plan, main, policy
from scholarch.storage.s3 import S3Objects

PLAN = {
    "buckets": ["datasets", "runs"],
    "keys": {
        "vision.runs": [
            {"bucket": "datasets", "rights": "read"},
            {"bucket": "runs", "prefix": "vision", "rights": "write"},
        ],
        "operator": [{"bucket": "runs", "rights": "read"}],
    },
}


@pytest.fixture
def asked(tmp_path: Path, own_minio: MinioServer) -> list[str]:
    """The command's arguments; the environment is that of MinIO's root account."""
    assert own_minio.process is not None
    keys = tmp_path / "keys"
    keys.mkdir()
    for purpose in PLAN["keys"]:
        (keys / purpose).write_text(f"secret of {purpose}, long enough\n")
    (tmp_path / "plan.json").write_text(json.dumps(PLAN))
    return [str(tmp_path / "plan.json"), str(keys)]


def as_account(monkeypatch: pytest.MonkeyPatch, purpose: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", purpose)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"secret of {purpose}, long enough")


@pytest.mark.service
def test_each_key_can_do_what_it_should_and_nothing_beside_it(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(asked) == 0
    assert main(asked) == 0, "a second time"
    S3Objects("datasets", "").write("picture", b"1")
    S3Objects("runs", "other").write("recipe.yaml", b"2")
    assert main([*asked, "--check"]) == 0

    as_account(monkeypatch, "vision.runs")
    own = S3Objects("runs", "vision/one")
    own.write("recipe.yaml", b"3")
    assert own.read("recipe.yaml") == b"3"
    own.remove("recipe.yaml")
    assert S3Objects("datasets", "").read("picture") == b"1"
    assert S3Objects("datasets", "").children() == ["picture"]
    for denied in (
        lambda: S3Objects("datasets", "").write("picture", b"4"),
        lambda: S3Objects("datasets", "").remove("picture"),
        lambda: S3Objects("runs", "other").read("recipe.yaml"),
        lambda: S3Objects("runs", "other").children(),
        lambda: S3Objects("runs", "vision-two").write("recipe.yaml", b"5"),
    ):
        with pytest.raises(UserError, match=r"rights|denied|not allow"):
            denied()

    as_account(monkeypatch, "operator")
    assert S3Objects("runs", "other").read("recipe.yaml") == b"2"
    with pytest.raises(UserError):
        S3Objects("runs", "other").write("recipe.yaml", b"6")


@pytest.mark.service
def test_check_names_what_is_wrong(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {**PLAN, "keys": {**PLAN["keys"], "operator": [{"bucket": "datasets", "rights": "write"}]}}
    plan = Path(asked[0])
    plan.write_text(json.dumps(wrong))
    assert main(asked) == 0
    plan.write_text(json.dumps(PLAN))
    assert main([*asked, "--check"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("  fix: ")]
    assert len(said) == 2
    assert said[0].startswith("operator cannot read")
    assert said[1] == "operator can write into datasets"


def test_policy_names_the_prefix_in_listings_too() -> None:
    place = Plan.model_validate(PLAN).keys["vision.runs"][1]
    listing, located, objects = policy([place])["Statement"]
    assert listing["Condition"] == {"StringLike": {"s3:prefix": ["vision", "vision/*"]}}
    assert located["Resource"] == ["arn:aws:s3:::runs"]
    assert objects["Resource"] == ["arn:aws:s3:::runs/vision/*"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"buckets": ["UPPER"]}, "buckets"),
        ({"keys": {"a": [{"bucket": "runs", "rights": "own"}]}}, "rights"),
        ({"keys": {"a": [{"bucket": "runs", "prefix": "*", "rights": "read"}]}}, "prefix"),
        ({"keys": {"nobody": []}}, "no secret of nobody"),
    ],
)
def test_wrong_plan_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], says: str
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps({**PLAN, **change}))
    assert main([str(tmp_path / "plan.json"), str(tmp_path)]) == 2
    assert says in capsys.readouterr().err
