"""The act against a real MLflow server: cut off at every call, and done by two at once."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from promotion_parts import a_policy, a_result
from scholarch.config.promotion import PolicySpec
from scholarch.errors import UserError
from scholarch.registry.client import connect
from scholarch.registry.decision import Contender, Decision, decide
from scholarch.registry.history import Act, replay
from scholarch.registry.promotion import Names, Overtaken, Promoter, Standing
from scholarch.registry.table import history_text

names = (f"dino-{number}" for number in itertools.count())


class Cut(BaseException):
    """The process is gone."""


class CountingClient:
    """A real client that does something else before its n-th call.

    Args:
        only_writes: reads are not counted: cut off at one, all is as before the next write.
    """

    def __init__(
        self, client: Any, at: int = -1, instead: Callable[[], None] = lambda: None, only_writes: bool = False
    ) -> None:
        self._client, self._at, self._instead, self._only_writes = client, at, instead, only_writes
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            self.calls += not (self._only_writes and name.startswith(("get_", "search_")))
            if self.calls == self._at:
                self._at = -1
                self._instead()
            return getattr(self._client, name)(*args, **more)

        return call


def cut() -> None:
    raise Cut


@dataclass
class Model:
    """A registered model with three versions; the first is champion, as somebody made it before there was a log."""

    client: Any
    policy: PolicySpec
    run_id: str

    def actor(self, client: Any = None, by: str = "a test") -> Promoter:
        return Promoter(client or self.client, Names.of(self.policy), by)

    def decision(self, version: str, value: float = 0.9) -> Decision:
        """About the champion of now."""
        champion = self.look().champion
        sides = [Contender(v, {"digits": self.result(v, value)}) for v in (version, champion)]
        return decide(self.policy, *sides)

    def result(self, version: str, value: float = 0.9) -> Any:
        return a_result(version, value, self.policy.model)

    def promote(self, actor: Promoter, decision: Decision) -> Act | None:
        results = {"digits": {decision.candidate: self.result(decision.candidate)}}
        return actor.record(self.policy, decision, results)

    def look(self) -> Standing:
        return self.actor().look()

    def valid(self) -> list[str]:
        """Champions that acts have made, in order."""
        history = self.look().history
        return [act.after for act in history.acts if act.number not in history.void]


@pytest.fixture(scope="module")
def client(server: MlflowServer) -> Any:
    server.start()
    return connect(server.uri)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, fresh_database: Path) -> Any:
    """A client of MLflow's store itself, many times as fast as one of a server."""
    folder = tmp_path_factory.mktemp("database")
    shutil.copy(fresh_database, folder / "mlflow.db")
    found = connect(f"sqlite:///{folder / 'mlflow.db'}")
    found.create_experiment("training", artifact_location=(folder / "artifacts").as_uri())
    return found


def made(client: Any) -> Model:
    name = next(names)
    experiment = client.get_experiment_by_name("training")
    place = experiment.experiment_id if experiment else client.create_experiment("training")
    run_id = client.create_run(place).info.run_id
    client.create_registered_model(name)
    for _ in range(3):
        client.create_model_version(name, f"runs:/{run_id}/model", run_id)
    client.set_registered_model_alias(name, "champion", "1")
    return Model(client, a_policy({"bound": 0.5, "allowedRegression": 0.1}, model=name), run_id)


pytestmark = pytest.mark.service


def test_promotion_rollback_and_refusal_are_seen_in_the_registry(client: Any, tmp_path: Path) -> None:
    model = made(client)
    act = model.promote(model.actor(by="ada"), model.decision("2"))
    assert act is not None
    assert act.done
    assert model.look().aliases == {"champion": "2", "previous": "1"}
    version = client.get_model_version(model.policy.model, "2")
    assert version.tags["promotion"] == "made champion by act 1"
    assert act.evidence == version.tags["promotion.evidence"]
    kept = client.download_artifacts(
        model.run_id, act.evidence.removeprefix(f"runs:/{model.run_id}/"), str(tmp_path)
    )
    evidence = json.loads(Path(kept).read_text())
    assert evidence["decision"]["verdict"] == "promote"
    assert evidence["results"]["digits"]["2"]["metrics"] == {"knn/top1": 0.9}

    refused = model.decision("3", 0.2)
    assert refused.verdict == "refuse"
    assert model.promote(model.actor(), refused) is not None
    assert model.promote(model.actor(), refused) is None, "it is recorded once"
    assert model.look().aliases == {"champion": "2", "previous": "1"}

    model.actor(by="bob").roll_back("looks odd")
    standing = model.look()
    assert standing.aliases == {"champion": "1"}
    assert standing.history.withdrawn == {"2": 3}
    with pytest.raises(UserError, match="no champion before version 1"):
        model.actor().roll_back()
    lines = history_text(standing.history).splitlines()
    assert [line.split()[0] for line in lines] == ["no", "3", "2", "1"]
    assert "2 -> 1, rolled back" in lines[1]
    assert "3 refused" in lines[2]
    assert "0.2, asked for: at least 0.5" in lines[2]


def test_an_alias_moved_by_somebody_else_is_drift_and_is_put_back(database: Any) -> None:
    model = made(database)
    assert model.look().drift == "", "without a log, whoever has the alias is champion"
    promotion(model, model.actor())
    database.set_registered_model_alias(model.policy.model, "champion", "3")
    assert "is at version 3; by the log of promotions it is version 2" in model.look().drift
    assert model.look().champion == "2"
    assert model.actor().restore().aliases == {"champion": "2", "previous": "1"}
    database.delete_registered_model_alias(model.policy.model, "champion")
    assert "is gone" in model.look().drift


def promotion(model: Model, actor: Promoter) -> None:
    model.promote(actor, model.decision("2"))


def rollback(_: Model, actor: Promoter) -> None:
    actor.roll_back()


def interrupted(client: Any, act: Callable[[Model, Promoter], None]) -> Iterator[Model]:
    """Models of which each had the act cut off before another of its writes, and one after all."""
    for at in itertools.count(1):
        model = made(client)
        if act is rollback:
            promotion(model, model.actor())
        with suppress(Cut):
            cutting = CountingClient(client, at, cut, only_writes=True)
            act(model, model.actor(cutting))
            return
        yield model


def test_cut_off_at_every_call_a_promotion_is_finished_by_a_repeat(client: Any) -> None:
    champions = []
    for model in interrupted(client, promotion):
        champions.append(model.look().aliases["champion"])
        if model.actor().settle().champion == "1":
            assert model.look().aliases == {"champion": "1"}
            promotion(model, model.actor())
        assert model.look().aliases == {"champion": "2", "previous": "1"}
        assert not model.look().history.unfinished
        assert model.valid() == ["2"]
    # Evidence, log, entry, and champion's alias not yet moved; previous's alias, two tags, `done`.
    assert champions == ["1"] * 4 + ["2"] * 4


def test_cut_off_at_every_call_a_rollback_is_finished_by_a_repeat(client: Any) -> None:
    champions = []
    for model in interrupted(client, rollback):
        champions.append(model.look().aliases["champion"])
        if model.actor().settle().champion == "2":
            model.actor().roll_back()
        assert model.look().aliases == {"champion": "1"}
        assert model.valid() == ["2", "1"]
    assert champions == ["2"] * 3 + ["1"] * 4


@pytest.mark.parametrize("looks_again", [False, True], ids=["decided at once", "decides after the first"])
def test_two_at_once_leave_one_champion(database: Any, looks_again: bool) -> None:
    """The first is held up before each of its calls, while the second does all of its own."""
    ends = set()
    held = True

    for at in itertools.count(1):
        held = False
        model = made(database)
        late = model.decision("3")

        def other(model: Model = model, late: Decision = late) -> None:
            nonlocal held
            held = True
            if looks_again:
                model.actor().settle()
                late = model.decision("3")
            try:
                model.promote(model.actor(by="second"), late)
            except Overtaken:
                assert not looks_again

        first = model.decision("2")
        try:
            model.promote(model.actor(CountingClient(database, at, other), by="first"), first)
        except Overtaken:
            assert model.look().champion == "3"
        if not held:
            break
        standing, valid = model.look(), ["1", *model.valid()]
        assert standing.drift == ""
        assert not standing.history.unfinished
        assert standing.aliases == {"champion": valid[-1], "previous": valid[-2]}
        ends.add(tuple(valid[1:]))
    assert ends == ({("2", "3"), ("3",)} if looks_again else {("2",), ("3",)})


def act(number: int, before: str, after: str, kind: Any = "promotion") -> Act:
    return Act(number=number, kind=kind, before=before, after=after, by="", time=0.0)


def test_acts_that_came_too_late_are_void() -> None:
    early = [act(3, "1", "3"), act(1, "", "1"), act(2, "1", "2"), act(4, "2", "1", "rollback")]
    late = [act(5, "1", "5", "rollback"), act(6, "1", "1"), act(7, "9", "8"), act(8, "1", "4", "refusal")]
    history = replay([*early, *late])
    assert history.void == {3, 5, 6, 7}
    assert (history.line, history.previous, history.withdrawn) == (("1",), "", {"2": 4})
