"""Secrets stay here; words of vision transformers pass."""

from __future__ import annotations

import pytest
from scholarch.registry.redaction import flatten, redact, redact_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://ann:s3cret@mlflow:5000/x", "https://[redacted]@mlflow:5000/x"),
        ("postgresql+psycopg2://u:p@ss@db/mlflow", "postgresql+psycopg2://[redacted]@db/mlflow"),
        ("s3://key:secret@bucket/a and http://t@h", "s3://[redacted]@bucket/a and http://[redacted]@h"),
        (
            "https://s3/x?X-Amz-Signature=ab12&part=1&X-Amz-Security-Token=z",
            "https://s3/x?X-Amz-Signature=[redacted]&part=1&X-Amz-Security-Token=[redacted]",
        ),
        ("models:/dino@champion", "models:/dino@champion"),
        ("https://host/a@b?mail=c@d", "https://host/a@b?mail=c@d"),
        ("sqlite:////runs/mlflow.db", "sqlite:////runs/mlflow.db"),
    ],
)
def test_addresses_lose_their_passwords(text: str, expected: str) -> None:
    assert redact_text(text) == expected


@pytest.mark.parametrize(
    "key",
    ["password", "db_password", "AWS_SECRET_ACCESS_KEY", "aws_access_key_id", "api_key", "apiKey", "hf_token",
     "token", "session_token", "credentials", "private_key", "Authorization", "passphrase"],
)  # fmt: skip
def test_values_of_secret_keys_are_hidden_at_any_depth(key: str) -> None:
    tree = {"data": [{"options": {key: "hunter2"}}], key: ["hunter2"], "kept": 1}

    assert "hunter2" not in str(redact(tree))
    assert redact(tree)["kept"] == 1


@pytest.mark.parametrize(
    "key",
    ["mask_token", "tokens", "cls_token", "masked_key_bias", "keep_checkpoints", "register_tokens", "key"],
)
def test_words_of_the_field_are_kept(key: str) -> None:
    assert redact({key: "value"}) == {key: "value"}


def test_a_secret_that_is_not_set_says_so() -> None:
    assert redact({"token": None, "mask": True}) == {"token": None, "mask": True}


def test_flatten_joins_keys_by_dots_and_keeps_lists_whole() -> None:
    tree = {"model": {"size": "tiny", "rope": {"base": 100.0}}, "lr": [{"end": 1}], "masks": {}, "fix": None}

    assert flatten(tree) == {
        "model.size": "tiny",
        "model.rope.base": "100.0",
        "lr": '[{"end": 1}]',
        "masks": "{}",
        "fix": "None",
    }
