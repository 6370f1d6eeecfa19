"""Shrinks a recipe until it runs to its end in under a minute on two cores, every phase of it included.

What is kept is the method: terms, teachers, the shape of every schedule and the ratios between the
sizes of views. What comes out is trained on two photographs and worth nothing but the proof that it runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from scholarch.config.schema import DRAWN
from scholarch.config.students import for_student

Scale = Literal["full", "tiny"]

STEPS = 12
BATCH = 8
PATCH = 4
GRID = 8
"""Patches along the side of the largest view of its own crops."""
GROUP = 4
WIDER = 8
LARGEST: Mapping[str, int] = {"prototypes": 64, "hidden": 48, "bottleneck": 16}
MODELS: Mapping[str, Mapping[str, Any]] = {
    # The size's name stays: it says which feed-forward layer there is.
    "vit": {"embed_dim": 32, "depth": 2, "heads": 2, "patch": PATCH},
    "capi": {"embed_dim": 32, "depth": 2, "heads": 2, "patch": PATCH, "predictor_depth": 2, "registers": 4},
    "convnext": {"depths": [1, 1, 1, 1], "widths": [8, 16, 24, 32]},
}
TEXT: Mapping[str, Any] = {"embed_dim": 32, "depth": 2, "heads": 2, "vocabulary": 640, "length": 40}
HEAD: Mapping[str, Any] = {"heads": 2}
JOINT = 64
TEACHERS: Mapping[str, Mapping[str, Any]] = {
    "vit": {"embed_dim": 48},
    "capi": {"embed_dim": 48},
    "convnext": {"widths": [8, 16, 24, 48]},
}
"""Frozen teachers of their own model stay wider than the student."""
DEFAULT_SIZE, DEFAULT_PATCH, DEFAULT_GRID = 224, {"vit": 16, "capi": 14, "convnext": 32}, 37
"""Of views, models and learned positions, where a recipe leaves them out."""


def tiny(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The tiny form of a recipe that is plain data, not yet validated; gives a new one.

    Lengths in steps shrink with the run's, but none to nothing: a warm-up, a window or the
    refresh of a snapshot still happens. Shares of the run stay. A frozen teacher that is not named
    gets drawn weights.
    """
    students = {
        name: _tiny_student(tiny(for_student(recipe, name)), number)
        for number, name in enumerate(recipe.get("students", {}))
    }
    data = {**recipe, "name": f"{recipe.get('name', 'recipe')}-tiny"}
    steps = data.get("training", {}).get("steps", STEPS)
    ratio = min(STEPS / steps, 1.0)
    data = {name: _shorter(value, ratio) for name, value in data.items()}
    _shrink_sizes(data)
    for section, name in (("optimizer", "freeze_prototypes"), ("init_from", "head_warmup")):
        length = data.get(section, {}).get(name)
        if isinstance(length, int):
            data[section][name] = _length(length, ratio)
    for owner in (data, *data.get("teachers", {}).values()):
        for head in owner.get("heads", {}).values():
            head.update({name: min(head[name], most) for name, most in LARGEST.items() if name in head})
    for teacher in data.get("teachers", {}).values():
        if teacher.get("weights") == "frozen":
            teacher.setdefault("checkpoint", DRAWN)
    for term in (
        t for owner in (data, *data.get("students", {}).values()) for t in owner.get("terms", {}).values()
    ):
        if isinstance(term.get("group"), int):
            term["group"] = min(term["group"], GROUP)
    data["training"] = {
        **data.get("training", {}),
        "steps": min(steps, STEPS),
        "global_batch": BATCH,
        "micro_batch": "auto",
        "workers": 0,
        "compile": False,
    }
    if data.get("captions") is not None or data["model"].get("kind") == "aligned":
        data["captions"] = {"merges": "learned"}
        data["model"]["text"] = dict(TEXT)
        data["model"]["joint"] = JOINT
        data["model"]["head"] = {**data["model"].get("head", {}), **HEAD}
    if students:
        # The rest of what a student changes is as short as the recipe: see `_shorter`.
        data["students"] = {name: {**data["students"][name], **own} for name, own in students.items()}
    data["evaluation"] = {"every": STEPS, "at_most": 100}
    data["data"] = _data(data.get("data"), "shapes" if "captions" in data else "photos")
    return data


def _tiny_student(small: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What the tiny form of a student has of its own: sizes, and one student is wider than the one before."""
    model = dict(small["model"])
    if "widths" in model:
        model["widths"] = [*model["widths"][:-1], model["widths"][-1] + WIDER * number]
    else:
        model["embed_dim"] += WIDER * number
    return {"model": model, "views": small["views"], "heads": small["heads"]}


def _length(steps: int, ratio: float) -> int:
    return max(round(steps * ratio), 1) if steps else 0


def _shorter(value: Any, ratio: float) -> Any:
    """A copy with every segment of a schedule, and every refresh, shortened by `ratio`."""
    if isinstance(value, list):
        return [_shorter(item, ratio) for item in value]
    if not isinstance(value, Mapping):
        return value
    copy = {name: _shorter(item, ratio) for name, item in value.items()}
    segment = "end" in copy and isinstance(copy.get("steps"), int)
    for name in ("steps", "hold") if segment else ("first", "every") if "first" in copy else ():
        if name not in copy:
            continue
        copy[name] = _length(copy[name], ratio)
    return copy


def _shrink_sizes(data: dict[str, Any]) -> None:
    """Makes the model tiny, and the views so many patches fewer that the largest has GRID of them."""
    model = data["model"]
    if model.get("kind") == "aligned":
        model = model.setdefault("vision", {})
    kind = model.get("kind", "vit")
    patch: int = model.get("patch", DEFAULT_PATCH[kind])
    smaller: int = MODELS[kind].get("patch", patch)
    views = data.get("views", {})
    own = [name for name, view in views.items() if not view.get("like")]
    sets = [resolution.get("sizes", {}) for resolution in data.get("resolutions", ())]
    sizes = [views[name].get("size", DEFAULT_SIZE) for name in own]
    sizes += [size for one in sets for name, size in one.items() if name in own]
    ratio: float = min(GRID * patch / max(sizes, default=DEFAULT_SIZE), 1.0)

    def shrunk(size: int) -> int:
        return max(round(size / patch * ratio), 2) * smaller

    for view in views.values():
        view["size"] = shrunk(view.get("size", DEFAULT_SIZE))
        if view.get("teacher_size"):
            view["teacher_size"] = view["size"] // smaller * PATCH
        if "count" in view and not isinstance(view.get("blur"), list):
            view["count"] = min(view["count"], 4)
    for one in sets:
        one.update({name: shrunk(size) for name, size in one.items()})
    _shrink_model(model, ratio)
    for teacher in data.get("teachers", {}).values():
        if teacher.get("model"):
            _shrink_model(teacher["model"], ratio)
            teacher["model"].update(TEACHERS[teacher["model"].get("kind", "vit")])


def _shrink_model(model: dict[str, Any], ratio: float) -> None:
    if model.get("position") == "learned":
        learned = model.get("learned", {})
        grid = max(round(learned.get("grid", DEFAULT_GRID) * ratio), 2)
        model["learned"] = {**learned, "grid": grid}
    model.update(MODELS[model.get("kind", "vit")])


def _data(section: Any, default: str) -> dict[str, Any]:
    """The recipe's own data where it names some, else pictures that need no download."""
    section = {"source": section} if isinstance(section, str) else dict(section or {})
    named = section.get("source") or section.get("sources")
    return section if named else {**section, "source": default}
