"""Shards of the training state: any layout reads what any other wrote, bit for bit, and broken ones are named."""

import json
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from ncvc.model.training_state import HostCopy, ParameterSlice, StateReader, even_slices, write_shard
from ncvc.storage import check_file, file_record


def piece(name: str, start: int, values: torch.Tensor, *, kind: str = "weight") -> ParameterSlice:
    return ParameterSlice(name=name, start=start, stop=start + len(values), tensors={kind: values})


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The values' bytes: NaN equals itself only so."""
    return tensor.contiguous().view(torch.uint8)


@st.composite
def cuts(draw, size: int, *, parts: int) -> list[tuple[int, int]]:
    """Any ``parts`` ranges (some empty) that make up [0, size), in any order."""
    places = sorted(draw(st.lists(st.integers(0, size), min_size=parts - 1, max_size=parts - 1)))
    return draw(st.permutations(list(pairwise([0, *places, size]))))


@st.composite
def layouts(draw) -> tuple[dict[str, int], list[dict[str, tuple[int, int]]], dict[str, list[tuple[int, int]]]]:
    """Sizes, the range of each parameter that each writer holds, and the ranges that the readers ask for."""
    sizes = {name: draw(st.integers(1, 40)) for name in ("embedding", "layers.0.norm", "頭")[: draw(st.integers(1, 3))]}
    writers, readers = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    held = {name: draw(cuts(size, parts=writers)) for name, size in sizes.items()}
    asked = {name: draw(cuts(size, parts=readers)) for name, size in sizes.items()}
    return sizes, [{name: held[name][writer] for name in sizes} for writer in range(writers)], asked


@settings(max_examples=60, deadline=None)
@given(layout=layouts(), seed=st.integers(0, 2**32 - 1))
def test_any_layout_reads_what_any_other_wrote_bit_for_bit(layout, seed):
    sizes, writers, asked = layout
    generator = torch.Generator().manual_seed(seed)
    whole = {  # random bits: NaN, infinities and subnormal numbers among them
        kind: {
            name: torch.randint(0, 256, (size * width,), generator=generator, dtype=torch.uint8).view(dtype)
            for name, size in sizes.items()
        }
        for kind, dtype, width in (("weight", torch.float32, 4), ("exp_avg", torch.bfloat16, 2))
    }
    with tempfile.TemporaryDirectory() as folder:
        shards = []
        for number, ranges in enumerate(writers):
            slices = [
                ParameterSlice(name=name, start=a, stop=b, tensors={kind: whole[kind][name][a:b] for kind in whole})
                for name, (a, b) in ranges.items()
            ]
            shards.append(f"{number}.safetensors")
            write_shard(Path(folder) / shards[-1], slices)
        reader = StateReader(Path(folder), shards)
        assert set(reader.kinds) == set(whole) and set(reader.names) == set(sizes)
        for kind, parameters in whole.items():
            for name, values in parameters.items():
                for start, stop in asked[name]:
                    found = reader.read(kind, name, start, stop)
                    assert found.dtype == values.dtype and found.shape == (stop - start,)
                    assert torch.equal(bits(found), bits(values[start:stop]))
                assert torch.equal(bits(reader.read_full(kind, name, [len(values)])), bits(values))


def test_the_safetensors_library_reads_a_shard(tmp_path):
    weights, moments = torch.randn(7), torch.randn(7).bfloat16()
    both = ParameterSlice(name="w", start=5, stop=12, tensors={"exp_avg": moments, "weight": weights})
    write_shard(tmp_path / "s.safetensors", [both, piece("b", 0, torch.arange(3.0))])
    found = load_file(tmp_path / "s.safetensors")
    assert found.keys() == {"exp_avg:w", "weight:w", "weight:b"}
    assert torch.equal(found["weight:w"], weights) and torch.equal(found["exp_avg:w"], moments)
    assert torch.equal(found["weight:b"], torch.arange(3.0))
    with safe_open(tmp_path / "s.safetensors", framework="pt") as file:
        assert file.metadata() == {"w": "5", "b": "0"}


def test_values_lie_aligned_in_the_file(tmp_path):
    both = ParameterSlice(name="w", start=0, stop=3, tensors={"a": torch.randn(3).bfloat16(), "b": torch.randn(3)})
    write_shard(tmp_path / "s", [both])
    data = (tmp_path / "s").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    assert header["b:w"]["data_offsets"] == [0, 12] and header["a:w"]["data_offsets"] == [12, 18]


@pytest.mark.parametrize("values", [0, 10, (1 << 18) - 20, 1 << 19, 3_000_001])  # up to 12 MB: several chunks
def test_the_record_is_the_one_that_reading_the_file_gives(tmp_path, values):
    path = tmp_path / "s.safetensors"
    record = write_shard(path, [piece("w", 0, torch.randn(values))])
    assert record == file_record(path)
    check_file(path, record, verify=True)


def test_a_host_copy_keeps_the_moment_and_its_memory():
    live = torch.arange(1000.0)
    host = HostCopy()
    first = host.copy([piece("w", 0, live)])
    live += 1  # training goes on
    assert torch.equal(first[0].tensors["weight"], torch.arange(1000.0))
    place = first[0].tensors["weight"].data_ptr()
    second = host.copy([piece("w", 0, live)])
    assert second[0].tensors["weight"].data_ptr() == place != live.data_ptr()
    assert torch.equal(second[0].tensors["weight"], torch.arange(1000.0) + 1)
    third = host.copy([piece("w", 0, live[:10].bfloat16())])  # another shape and type
    assert third[0].tensors["weight"].dtype == torch.bfloat16 and third[0].stop == 10


def test_a_host_copy_is_no_part_of_the_graph():
    weight = torch.nn.Parameter(torch.ones(4))
    assert not HostCopy().copy([piece("w", 0, weight)])[0].tensors["weight"].requires_grad


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_host_copy_from_the_gpu_is_pinned_and_complete():
    live = torch.arange(1_000_000.0, device="cuda")
    host = HostCopy()
    for _ in range(2):
        live += 1
        copied = host.copy([piece("w", 0, live)])[0].tensors["weight"]
        assert copied.is_pinned() and torch.equal(copied, live.cpu())


def test_a_slice_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"weight of w.*give a 1-D tensor of 4 values"):
        ParameterSlice(name="w", start=0, stop=4, tensors={"weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="shape \\[2, 2\\] is not the flat slice"):
        ParameterSlice(name="w", start=0, stop=4, tensors={"weight": torch.zeros(2, 2)})


def test_what_a_shard_cannot_say_is_refused(tmp_path):
    with pytest.raises(ValueError, match="w comes twice in one shard"):
        write_shard(tmp_path / "s", [piece("w", 0, torch.zeros(2)), piece("w", 4, torch.zeros(2))])
    with pytest.raises(ValueError, match=r"torch\.complex64 cannot be saved"):
        write_shard(tmp_path / "s", [piece("w", 0, torch.zeros(2, dtype=torch.complex64))])


def two_shards(folder: Path, *, second_start: int, dtype: torch.dtype = torch.float32) -> StateReader:
    write_shard(folder / "0", [piece("w", 0, torch.zeros(4))])
    write_shard(folder / "1", [piece("w", second_start, torch.zeros(4, dtype=dtype))])
    return StateReader(folder, ["0", "1"])


def test_values_held_twice_are_refused_with_both_files(tmp_path):
    with pytest.raises(ValueError, match="values 3 to 4 of weight of w are held twice, by 0 and 1"):
        two_shards(tmp_path, second_start=3)


def test_one_parameter_in_two_types_is_refused(tmp_path):
    with pytest.raises(ValueError, match="weight of w is F32 in 0 and BF16 in 1"):
        two_shards(tmp_path, second_start=4, dtype=torch.bfloat16)


def test_missing_values_are_named(tmp_path):
    reader = two_shards(tmp_path, second_start=5)
    assert reader.read("weight", "w", 5, 9).shape == (4,)  # what is there can be read
    with pytest.raises(ValueError, match=r"value 4 of weight of w is in no shard \(held: 0 to 4 in 0, 5 to 9 in 1\)"):
        reader.read("weight", "w", 3, 6)
    with pytest.raises(ValueError, match="value 9 of weight of w is in no shard"):
        reader.read("weight", "w", 6, 10)
    with pytest.raises(ValueError, match="no shard holds exp_avg of w"):
        reader.read("exp_avg", "w", 0, 1)
    with pytest.raises(ValueError, match="no shard holds weight of v"):
        reader.read_full("weight", "v", [2, 2])


def test_a_smaller_shape_than_the_saved_one_is_refused(tmp_path):
    reader = two_shards(tmp_path, second_start=4)
    assert reader.read_full("weight", "w", [2, 4]).shape == (2, 4)
    with pytest.raises(ValueError, match=r"weight of w has 8 values .* but shape \[2, 3\] has 6"):
        reader.read_full("weight", "w", [2, 3])


@pytest.mark.parametrize("left", [0, 7, 40, -1])
def test_a_torn_shard_is_named(tmp_path, left):
    write_shard(tmp_path / "0", [piece("w", 0, torch.zeros(4))])
    (tmp_path / "0").write_bytes((tmp_path / "0").read_bytes()[:left])
    with pytest.raises(ValueError, match=r"/0 is torn \("):
        StateReader(tmp_path, ["0"])
    with pytest.raises(ValueError, match="/1 is missing"):
        StateReader(tmp_path, ["1"])


@given(sizes=st.lists(st.integers(0, 50), max_size=6), world_size=st.integers(1, 9))
def test_even_slices_are_together_everything_once_and_equal_to_one_value(sizes, world_size):
    named = {f"p{number}": size for number, size in enumerate(sizes)}
    shares = [even_slices(named, rank=rank, world_size=world_size) for rank in range(world_size)]
    counts = [sum(stop - start for _, start, stop in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    held = [(name, value) for share in shares for name, start, stop in share for value in range(start, stop)]
    assert held == [(name, value) for name, size in named.items() for value in range(size)]
