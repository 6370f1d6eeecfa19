"""What must not reach a tracking server: passwords in addresses, and values of keys that name secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from scholarch.config import resolve

REDACTED = "[redacted]"

_USER_INFO = re.compile(r"(?<=://)[^/?#\s]*@")
_SIGNED = re.compile(
    r"(?i)(?<=[?&])([\w-]*(?:signature|token|sig|credential|key|password|secret))=[^&\s\"']*"
)
# A bare "token" would hide mask_token, cls_token and tokens: words of vision transformers.
_SECRET_KEY = re.compile(
    r"(?i)(pass(word|wd|phrase)|secret|credential|api_?key|access_?key|private_?key|signing_?key|bearer"
    r"|authorization|(access|auth|session|api|refresh|hub|hf|mlflow|registry)_?token"
    r"|(^|[./])token$)"
)


def redact_text(text: str) -> str:
    """`text` without user:password in addresses and without signed query values."""
    return _SIGNED.sub(rf"\1={REDACTED}", _USER_INFO.sub(f"{REDACTED}@", text))


def redact(value: Any, key: str = "") -> Any:
    """A plain tree (mappings, lists, scalars) without secrets; everything else stays as it is."""
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if value is not None and _SECRET_KEY.search(key):
        return REDACTED
    if isinstance(value, (list, tuple)):
        return [redact(item) for item in value]
    return redact_text(value) if isinstance(value, str) else value


def flatten(tree: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys to text, as MLflow's parameters want them; a list is one value, as JSON."""
    return {
        key: json.dumps(value, default=str) if isinstance(value, (list, tuple, Mapping)) else str(value)
        for key, value in resolve.flatten(tree).items()
    }
