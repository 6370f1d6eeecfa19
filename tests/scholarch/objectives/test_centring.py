import numpy as np
import pytest
import torch
from gloo import run_ranks
from numpy.typing import NDArray
from scholarch.collectives import Pieces, rank
from scholarch.objectives.centring import Centring, CentringOptions, sinkhorn_knopp
from terms import random, slow_sinkhorn
from torch import Tensor
from torch.distributed import ProcessGroup

TEMPERATURE = 0.07


def _sinkhorn_on_rank(group: ProcessGroup, logits: Tensor, borders: list[int]) -> Tensor:
    mine = slice(borders[rank(group)], borders[rank(group) + 1])
    return sinkhorn_knopp([logits[mine]], TEMPERATURE, 3, Pieces(group))[0]


def test_sinkhorn_against_its_definition() -> None:
    logits = random(12, 7)
    found = sinkhorn_knopp([logits], TEMPERATURE, 3, Pieces(None))[0]
    np.testing.assert_allclose(found, slow_sinkhorn(logits.numpy(), TEMPERATURE), rtol=1e-12)


@pytest.mark.gloo
@pytest.mark.parametrize("borders", [[0, 6, 12], [0, 5, 5, 12], [0, 0, 1, 2, 12]])
def test_sinkhorn_over_uneven_and_empty_ranks(borders: list[int]) -> None:
    logits = random(12, 7)
    found = torch.cat(run_ranks(len(borders) - 1, _sinkhorn_on_rank, logits, borders))
    np.testing.assert_allclose(found, slow_sinkhorn(logits.numpy(), TEMPERATURE), rtol=1e-12)


def test_sinkhorn_of_one_sample_and_of_uniform_logits() -> None:
    # reference.md 12.3; one sample: the prototype step makes every entry 1, the row step 1/K.
    assert torch.allclose(
        sinkhorn_knopp([random(1, 5)], 0.04, 3, Pieces(None))[0], torch.full((1, 5), 0.2).double()
    )
    assert torch.allclose(
        sinkhorn_knopp([torch.zeros(4, 8)], 0.04, 3, Pieces(None))[0], torch.full((4, 8), 1 / 8)
    )


def test_sinkhorn_survives_huge_logits() -> None:
    logits = torch.tensor([[9e4, 0.0, 1.0], [0.0, 9e4, 2.0], [-9e4, 0.0, -9e4]])
    found = sinkhorn_knopp([logits], 0.04, 3, Pieces(None))[0]
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))
    assert found.argmax(dim=1)[:2].tolist() == [0, 1]


def test_sinkhorn_without_any_row() -> None:
    assert sinkhorn_knopp([torch.zeros(0, 4)], 0.04, 3, Pieces(None))[0].shape == (0, 4)


def test_sinkhorn_of_bfloat16_is_float32() -> None:
    logits = random(6, 4).bfloat16()
    found = sinkhorn_knopp([logits], TEMPERATURE, 3, Pieces(None))[0]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, slow_sinkhorn(logits.double().numpy(), TEMPERATURE), rtol=1e-5)


def test_micro_batches_are_centred_together() -> None:
    centring = Centring(CentringOptions())
    logits = random(2, 6, 5)
    parts = centring([logits[:, :1], logits[:, 1:4], logits[:, 4:]], TEMPERATURE, Pieces(None))
    assert [part.shape for part in parts] == [(2, 1, 5), (2, 3, 5), (2, 2, 5)]
    expected = slow_sinkhorn(logits.reshape(12, 5).numpy(), TEMPERATURE).reshape(2, 6, 5)
    np.testing.assert_allclose(torch.cat(parts, dim=1), expected, rtol=1e-12)


def _softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _moving_average_on_rank(
    group: ProcessGroup | None, steps: list[Tensor], borders: list[int]
) -> list[Tensor]:
    centring = Centring(CentringOptions(kind="moving_average"))
    centring.allocate(5)
    centring.double()
    mine = slice(borders[rank(group)], borders[rank(group) + 1])
    return [centring([logits[mine]], TEMPERATURE, Pieces(group))[0] for logits in steps]


@pytest.mark.gloo
@pytest.mark.parametrize("borders", [[0, 8], [0, 3, 8], [0, 0, 2, 8]])
def test_moving_average_affects_later_steps_only(borders: list[int]) -> None:
    steps = [random(8, 5, seed=seed) for seed in range(3)]
    world = len(borders) - 1
    if world == 1:
        results = [_moving_average_on_rank(None, steps, borders)]
    else:
        results = run_ranks(world, _moving_average_on_rank, steps, borders)
    centre = np.zeros(5)
    for step, logits in enumerate(steps):
        found = torch.cat([result[step] for result in results])
        np.testing.assert_allclose(found, _softmax((logits.numpy() - centre) / TEMPERATURE), rtol=1e-10)
        centre = 0.9 * centre + 0.1 * logits.numpy().mean(axis=0)


def test_moving_average_without_rows_stays() -> None:
    centring = Centring(CentringOptions(kind="moving_average"))
    centring.allocate(3)
    assert centring.centre is not None
    centring.centre.fill_(2.0)
    centring([torch.zeros(0, 3)], TEMPERATURE, Pieces(None))
    assert centring.centre.tolist() == [2, 2, 2]


def test_moving_average_is_saved_and_sinkhorn_has_nothing_to_save() -> None:
    averaged, scaled = Centring(CentringOptions(kind="moving_average")), Centring(CentringOptions())
    for centring in (averaged, scaled):
        centring.allocate(3)
    assert list(averaged.state_dict()) == ["centre"]
    assert list(scaled.state_dict()) == []


def test_a_centre_without_size_is_named() -> None:
    with pytest.raises(RuntimeError, match="allocate"):
        Centring(CentringOptions(kind="moving_average"))([torch.zeros(1, 3)], 0.1, Pieces(None))


@pytest.mark.parametrize("wrong", [{"iterations": 0}, {"momentum": 1.5}])
def test_wrong_options(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CentringOptions(**wrong)  # type: ignore[arg-type]
