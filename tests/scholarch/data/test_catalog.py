"""What may stand after `data=`."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from scholarch.data.catalog import open_source
from scholarch.errors import UserError
from sklearn.datasets import load_digits, load_sample_images


def test_digits() -> None:
    source = pickle.loads(pickle.dumps(open_source("digits")))
    bunch = load_digits()
    assert len(source) == 1797
    assert source.classes == [str(i) for i in range(10)]
    picture = source.read(5)
    assert picture.shape == (1, 8, 8)
    np.testing.assert_allclose(picture[0].numpy() / 255, bunch.images[5] / 16, atol=0.5 / 255)
    assert [source.label(i) for i in range(20)] == bunch.target[:20].tolist()
    assert open_source("digits", "none").label(3) is None
    assert source.fingerprint() == open_source("digits").fingerprint()


def test_photos() -> None:
    source = open_source("photos")
    assert len(source) == 2
    for index, image in enumerate(load_sample_images().images):
        np.testing.assert_array_equal(source.read(index).permute(1, 2, 0).numpy(), image)
    assert source.classes is None
    with pytest.raises(UserError, match="no labels"):
        open_source("photos", "folders")


def test_builtin_pictures_are_not_changed_by_their_reader() -> None:
    source = open_source("digits")
    source.read(0).zero_()
    assert source.read(0).any()


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"gs:// is not supported(.|\n)*digits or photos"):
        open_source("gs://bucket/pictures")
    with pytest.raises(UserError, match="did you mean digits"):
        open_source("digit")
    with pytest.raises(UserError, match="no such folder"):
        open_source(f"file://{tmp_path}/none")
    with pytest.raises(UserError, match="no data is named"):
        open_source(" ")
