import json
import math
from pathlib import Path

import numpy as np
import pytest
from scholarch.errors import UserError
from scholarch.storage.results import EvaluatedData, EvaluatedModel, Result, read_result, write_result


def a_result(**changes: object) -> Result:
    values = {
        "model": EvaluatedModel(address="models:/m/3", origin="m", sha256="0f"),
        "suite": "scenes",
        "evaluations": {"knn": {"kind": "knn", "data": "scenes"}},
        "data": {
            "scenes": EvaluatedData(address="", fingerprint="ab", samples={"test": 3}, broken={"test": 0})
        },
        "metrics": {"knn/top1": 2 / 3, "knn/none": math.nan},
        "samples": {"knn/top1": np.array([1.0, 0.0, 1.0])},
        "pictures": {"knn.png": b"\x89PNG"},
        "code": "0.1.0",
    }
    return Result(**{**values, **changes})  # type: ignore[arg-type]


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_result(str(tmp_path / "new"), a_result())
    found = read_result(str(tmp_path / "new"), pictures=True)
    assert math.isnan(found.metrics["knn/none"])
    assert found.metrics["knn/top1"] == found.samples["knn/top1"].mean()
    assert found.data == a_result().data
    assert (found.model, found.pictures) == (a_result().model, a_result().pictures)
    json.loads((tmp_path / "new" / "result.json").read_text(), parse_constant=pytest.fail)


@pytest.mark.parametrize("damage", ["samples.npz", "result.json"])
def test_a_damaged_result_is_told(tmp_path: Path, damage: str) -> None:
    write_result(str(tmp_path), a_result())
    path = tmp_path / damage
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=damage.replace(".", r"\.")):
        read_result(str(tmp_path))


def test_no_result_and_a_newer_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no result"):
        read_result(str(tmp_path))
    write_result(str(tmp_path), a_result())
    document = json.loads((tmp_path / "result.json").read_text())
    (tmp_path / "result.json").write_text(json.dumps({**document, "format": 99}))
    with pytest.raises(UserError, match="format 99"):
        read_result(str(tmp_path))
