"""The loader: the same crops, masks and ids however the work is shared; broken data; dying workers."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from scholarch import draws
from scholarch.data.batch import MicroBatch
from scholarch.data.catalog import open_source
from scholarch.data.loader import Captioning, Cut, StepLoader, StreamDataset, ViewMask
from scholarch.data.mixture import Mixture, Part, stream_of
from scholarch.data.options import ViewOptions
from scholarch.data.source import captions
from scholarch.data.stream import SampleStream
from scholarch.data.tokenizer import Tokenizer
from scholarch.data.views import MultiCrop

sys.path.append(str(Path(__file__).parent))  # workers import it by name, and inherit the path
from loader_parts import Deadly, draw_mask

VIEWS = {
    "global": ViewOptions(count=2, size=16, solarise=(0.0, 0.5)),
    "local": ViewOptions(count=2, size=8, scale=(0.05, 0.32), blur_kernel=3),
}
BATCH, STEPS = 12, 3


def dataset(source: str = "digits", seed: int = 4, batch: int = BATCH) -> StreamDataset:
    pictures = open_source(source)
    crops = MultiCrop(VIEWS, (0.3,), (0.4,))
    masks = {"global": ViewMask("global", draw_mask, (2, 2))}
    return StreamDataset(pictures, SampleStream(len(pictures), batch, seed), Cut(crops, masks))


def by_position(
    micro_batches: int, world: int, workers: int, start: int = 0
) -> dict[tuple[int, int], list[torch.Tensor]]:
    """(step, position) to id, crops and masks of the sample there."""
    found = {}
    for rank in range(world):
        loader = StepLoader(
            dataset(),
            start_step=start,
            end_step=STEPS,
            micro_batches=micro_batches,
            rank=rank,
            world=world,
            workers=workers,
        )
        assert len(loader) == STEPS - start
        for step, batches in enumerate(loader, start):
            assert len(batches) == micro_batches
            for batch in batches:
                for row, position in enumerate(batch.positions.tolist()):
                    tensors = [*batch.views.values(), *batch.masks.values()]
                    found[step, position] = [batch.sample_ids[row], *(t[:, row] for t in tensors)]
    return found


WHOLE = by_position(1, 1, 0)


@pytest.mark.parametrize(
    ("micro_batches", "world", "workers"), [(1, 2, 0), (1, 3, 0), (3, 2, 0), (2, 5, 0), (1, 1, 1), (2, 2, 2)]
)
def test_nothing_depends_on_how_the_work_is_shared(micro_batches: int, world: int, workers: int) -> None:
    found = by_position(micro_batches, world, workers)
    assert found.keys() == WHOLE.keys()
    for key, tensors in found.items():
        for tensor, expected in zip(tensors, WHOLE[key], strict=True):
            assert tensor.equal(expected)


def test_a_later_start_goes_on_with_the_same() -> None:
    later = by_position(1, 1, 0, start=2)
    assert sorted(later) == [(2, position) for position in range(BATCH)]
    assert all(t.equal(e) for key in later for t, e in zip(later[key], WHOLE[key], strict=True))


def test_contents_are_what_the_parts_say() -> None:
    data = dataset()
    batch = data[(2, np.array([1, 4, 5]))]
    assert batch.sample_ids.tolist() == data.stream.batch(2)[[1, 4, 5]].tolist()
    assert (len(batch), batch.upscaled, batch.broken) == (3, 3, [])
    for row, position in enumerate((1, 4, 5)):
        crops = data.cuts[0].crops(data.source.read(int(batch.sample_ids[row])), 4, 2, position)
        for name, crop in crops.items():
            assert batch.views[name][:, row].equal(crop)
        for view in range(2):
            expected = draw_mask(2, view * BATCH + position, 2 * BATCH, (2, 2))
            assert batch.masks["global"][view, row].tolist() == expected.tolist()


def test_an_empty_share_has_shapes() -> None:
    loader = StepLoader(dataset(batch=2), start_step=0, end_step=1, rank=0, world=3)
    ((batch,),) = list(loader)
    assert len(batch) == 0
    assert batch.views["global"].shape == (2, 0, 1, 16, 16)
    assert batch.masks["global"].shape == (2, 0, 4)
    assert batch.sample_ids.dtype == torch.int64


def test_the_global_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    list(StepLoader(dataset(), start_step=0, end_step=1))
    assert torch.get_rng_state().equal(state)


def test_moving_a_batch() -> None:
    batch = dataset()[(0, np.arange(2))]
    moved = batch.to("cpu", torch.float64)
    assert moved.views["global"].dtype == torch.float64
    assert moved.masks["global"].dtype == torch.bool
    assert isinstance(moved, MicroBatch)


def test_stream_and_source_must_agree() -> None:
    with pytest.raises(ValueError, match="the source has 2 pictures, the stream 3 samples"):
        StreamDataset(open_source("photos"), SampleStream(3, 4, 0), Cut(MultiCrop(VIEWS, (0.3,), (0.4,))))


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_pictures_are_replaced_by_the_next_good_one(tmp_path: Path, workers: int) -> None:
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", np.full((9, 9), 40 * i, np.uint8))
    for broken in (1, 2, 5):
        (tmp_path / f"{broken}.npy").write_bytes(b"\0")
    replacement = {0: 0, 1: 3, 2: 3, 3: 3, 4: 4, 5: 0}
    data = dataset(str(tmp_path), batch=4)
    named: list[str] = []
    for step, (batch,) in enumerate(StepLoader(data, start_step=0, end_step=6, workers=workers)):
        due = data.stream.batch(step).tolist()
        assert batch.sample_ids.tolist() == [replacement[i] for i in due]
        named += [entry.split(":")[0] for entry in batch.broken]
        assert batch.upscaled == 4
    # Four passes: 1 leads to 2 each time, 2 and 5 are due once more.
    assert sorted(named) == ["1.npy"] * 4 + ["2.npy"] * 8 + ["5.npy"] * 4


def test_nothing_but_broken_pictures_ends_with_words(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.npy").touch()
    with pytest.raises(RuntimeError, match="2 pictures in a row cannot be used; the last: "):
        list(StepLoader(dataset(str(tmp_path)), start_step=0, end_step=1))


def test_a_dead_worker_is_told_in_plain_words() -> None:
    data = StreamDataset(Deadly(), SampleStream(4, 2, 0), Cut(MultiCrop(VIEWS, (0.3,), (0.4,))))
    with pytest.raises(RuntimeError, match="a data worker died: SIGKILL; out of memory is the usual cause"):
        list(StepLoader(data, start_step=0, end_step=1, workers=1))


def test_signals_to_the_group_leave_workers_alive() -> None:
    """Ctrl-C and a SIGTERM to all: the trainer finishes its step with living workers."""
    script = textwrap.dedent("""
        import os, signal
        from scholarch.data.catalog import open_source
        from scholarch.data.loader import Cut, StepLoader, StreamDataset
        from scholarch.data.options import ViewOptions
        from scholarch.data.stream import SampleStream
        from scholarch.data.views import MultiCrop

        if __name__ == "__main__":
            source, caught = open_source("digits"), []
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *what: caught.append(what[0]))
            crops = MultiCrop({"global": ViewOptions(size=16)}, (0.3,), (0.4,))
            data = StreamDataset(source, SampleStream(len(source), 4, 0), Cut(crops))
            for step, _ in enumerate(StepLoader(data, start_step=0, end_step=40, workers=2)):
                if step == 1:
                    os.killpg(0, signal.SIGINT)
                    os.killpg(0, signal.SIGTERM)
            print("finished", step, sorted(caught))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(draws.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        start_new_session=True,
        check=False,
    )
    assert done.stdout.strip() == "finished 39 [2, 15]", done.stderr


def test_every_rank_draws_the_same_cut_of_a_step_by_the_ratios() -> None:
    sizes = ((16, 8, 3.0), (24, 8, 3.0), (24, 12, 0.5))
    cuts = [
        Cut(
            MultiCrop(
                {"global": ViewOptions(size=large), "local": ViewOptions(size=small, blur_kernel=3)},
                (0.3,),
                (0.4,),
            ),
            {"global": ViewMask("global", draw_mask, (large // 8, large // 8))},
            ratio,
        )
        for large, small, ratio in sizes
    ]
    pictures = open_source("digits")
    data = StreamDataset(pictures, SampleStream(len(pictures), BATCH, 4), *cuts)
    drawn = [cuts.index(data.cut(step)) for step in range(2000)]
    for number, (_, _, ratio) in enumerate(sizes):
        assert abs(drawn.count(number) / 2000 - ratio / 6.5) < 0.03
    for rank in range(2):
        loader = StepLoader(data, start_step=0, end_step=6, rank=rank, world=2, workers=rank)
        for step, (batch,) in enumerate(loader):
            large, small, _ = sizes[drawn[step]]
            assert batch.views["global"].shape == (1, 6, 1, large, large)
            assert batch.views["local"].shape[-1] == small
            assert batch.masks["global"].shape == (1, 6, (large // 8) ** 2)
    assert len(set(drawn[:6])) > 1


def mixed(folder: Path) -> StreamDataset:
    for name, count in (("a", 3), ("b", 5)):
        (folder / name).mkdir()
        for i in range(count):
            np.save(folder / name / f"{i}.npy", np.full((9, 9), 40 * i, np.uint8))
    for broken in ("a/2.npy", "b/0.npy"):
        (folder / broken).write_bytes(b"\0")
    parts = [Part(name, open_source(str(folder / name)), 1.0, 0.25) for name in "ab"]
    source = Mixture(parts)
    return StreamDataset(source, stream_of(source, BATCH, 4), Cut(MultiCrop(VIEWS, (0.3,), (0.4,))))


def test_a_mixture_is_the_same_however_the_work_is_shared(tmp_path: Path) -> None:
    data = mixed(tmp_path)
    stand_in = {2: 0, 3: 4}  # within the same data set: a goes round, b goes on
    for world, micro_batches, workers in ((1, 1, 0), (3, 2, 0), (2, 1, 1)):
        found = np.full((8, BATCH), -1)
        broken: list[str] = []
        for rank in range(world):
            loader = StepLoader(
                data,
                start_step=0,
                end_step=8,
                micro_batches=micro_batches,
                rank=rank,
                world=world,
                workers=workers,
            )
            for step, batches in enumerate(loader):
                for batch in batches:
                    found[step, batch.positions] = batch.sample_ids
                    broken += batch.broken
        due = [[stand_in.get(i, i) for i in data.stream.batch(step).tolist()] for step in range(8)]
        assert found.tolist() == due
        assert {entry.split(":")[0] for entry in broken} == {"a/2.npy", "b/0.npy"}


def captioned(workers: int, world: int) -> dict[tuple[int, int], list[int]]:
    """(step, position) to the ids of the caption there."""
    source = open_source("shapes")
    tokenizer = Tokenizer.learned((text for i in range(50) for text in captions(source, i)), 600)
    crops = MultiCrop({"global": ViewOptions(size=16)}, (0.5,) * 3, (0.5,) * 3)
    data = StreamDataset(
        source, SampleStream(len(source), 12, 4), Cut(crops), captioning=Captioning(tokenizer, 30)
    )
    found = {}
    for rank in range(world):
        loader = StepLoader(data, start_step=0, end_step=3, rank=rank, world=world, workers=workers)
        for step, (batch,) in enumerate(loader):
            tokens = batch.to("cpu", torch.float64).views["caption"]
            assert tokens.dtype == torch.int64
            for row, position in enumerate(batch.positions.tolist()):
                said = [
                    tokenizer.encode(text, 30).tolist()
                    for text in captions(source, int(batch.sample_ids[row]))
                ]
                found[step, position] = tokens[0, row].tolist()
                assert found[step, position] in said
    return found


def test_one_of_several_captions_is_drawn_by_seed_step_and_position() -> None:
    whole = captioned(0, 1)
    assert len(whole) == 36
    assert captioned(1, 2) == whole
    # By hand: the draw that the loader's key gives.
    source, stream = open_source("shapes"), SampleStream(4096, 12, 4)
    tokenizer = Tokenizer.learned((text for i in range(50) for text in captions(source, i)), 600)
    drawn = {int(draws.generator(4, "step", 2, p, "caption").integers(8)) for p in range(12)}
    assert len(drawn) > 1
    for position in range(12):
        number = int(draws.generator(4, "step", 2, position, "caption").integers(8))
        text = captions(source, int(stream.batch(2)[position]))[number]
        assert whole[2, position] == tokenizer.encode(text, 30).tolist()
