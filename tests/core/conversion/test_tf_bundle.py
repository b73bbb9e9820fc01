"""TensorFlow's checkpoint format against a writer of our own, TensorFlow itself, and damage."""

import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

import bundle_writer
from bundle_writer import DTYPES, block, entry, header, masked, table, write_bundle
from igpt_core.conversion.tf_bundle import data_name, masked_crc32c, read_index, read_tensor
from igpt_core.errors import CheckpointError


@pytest.fixture
def prefix(tmp_path):
    return str(tmp_path / "model.ckpt-7")


def read(prefix):
    """All float tensors of a checkpoint, by name."""
    folder = os.path.dirname(prefix)
    index = read_index(Path(prefix + ".index"), where=prefix)
    return {
        name: read_tensor(
            name,
            entry,
            Path(os.path.join(folder, data_name("model.ckpt-7", entry.shard, index.n_shards))),
            where=prefix,
        )
        for name, entry in index.entries.items()
        if entry.dtype is not None
    }


def tensors(count=40):
    rng = np.random.default_rng(0)
    named = {f"model/h{i}/attn/c_proj": rng.normal(size=(3, i + 1)) for i in range(count)}
    return {name: array.astype(np.float32) for name, array in named.items()}


@pytest.mark.parametrize("n_shards", [1, 3])
@pytest.mark.parametrize("layout", [{}, {"rows_per_block": 5}, {"restart_interval": 1}])
def test_what_is_written_is_read(prefix, n_shards, layout):
    write_bundle(prefix, tensors(), n_shards=n_shards, **layout)
    found = read(prefix)
    assert found.keys() == tensors().keys()
    for name, array in tensors().items():
        assert found[name].dtype is torch.float32
        assert np.array_equal(found[name].numpy(), array), name


def test_dtypes_and_shapes(prefix):
    values = np.float32([[-1.5, 2, 0.25]])
    arrays = {
        "double": values.astype(np.float64),
        "half": values.astype(np.float16),
        "brain": (values.view(np.uint32) >> 16).astype(np.uint16),
        "scalar": np.float32(3),
        "none": np.zeros((2, 0), np.float32),
        "step": np.int64(4),
    }
    write_bundle(prefix, arrays, dtypes={"brain": "bfloat16"})
    found = read(prefix)
    assert "step" not in found
    assert found["brain"].dtype is torch.bfloat16
    assert found["half"].dtype is torch.float16
    for name in ("double", "half", "brain"):
        assert found[name].tolist() == values.tolist()
    assert found["scalar"].item() == 3
    assert found["none"].shape == (2, 0)
    index = read_index(Path(prefix + ".index"), where=prefix)
    with pytest.raises(CheckpointError, match="step is not of a float dtype"):
        read_tensor("step", index.entries["step"], Path(prefix + ".index"), where=prefix)


def test_every_cut_and_every_flipped_byte_of_an_index_is_noticed(prefix):
    """Checksums cover all but the footer, and the statistics, which are not read."""
    write_bundle(prefix, tensors(8), rows_per_block=3)
    file = Path(prefix + ".index")
    whole = file.read_bytes()
    before = read_index(file, where=prefix)
    for size in range(0, len(whole), 3):
        file.write_bytes(whole[:size])
        refuse_index(file)
    footer = range(len(whole) - 48, len(whole) - 8)
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x41]) + whole[at + 1 :])
        if at in footer or at in statistics(whole):
            with suppress(CheckpointError):
                assert read_index(file, where=prefix) == before
        else:
            refuse_index(file)


def statistics(whole):
    """Where the block lies that TensorFlow leaves empty."""
    empty = block([]) + b"\0"
    start = whole.rindex(empty + masked(empty).to_bytes(4, "little"))
    return range(start, start + len(empty) + 4)


def refuse_index(file, words="damaged"):
    with pytest.raises(CheckpointError, match=words) as caught:
        read_index(file, where="here")
    assert str(caught.value).startswith("here: model.ckpt-7.index is damaged or cut short: ")
    assert "\n" not in str(caught.value)


HEADER = (b"", header(1))
HUGE = {"dtype": 1, "shape": (1 << 40, 1 << 20), "offset": 0, "checksum": 0}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(b"a", b"")], "it has no header"),
        ([(b"", header(1, endianness=1))], "big-endian"),
        ([(b"", b"\xff" * 12)], "a number has no end"),
        ([(b"", b"\x0a\x7f")], "a length leads past the end"),
        ([(b"", b"\x0b")], "a field of unknown kind 3"),
        ([(b"", bundle_writer.field(1, b"one"))], "text in place of a number"),
        ([HEADER, (b"a", bundle_writer.field(2, 5))], "a number in place of a message"),
        ([HEADER, (b"a", entry(**HUGE, shard=3, size=9))], "in data file 3 of 1"),
        ([HEADER, (b"a", b""), (b"a", b"")], "names are out of order"),
    ],
)
def test_wrong_content_under_right_checksums(prefix, rows, words):
    file = Path(prefix + ".index")
    file.write_bytes(table(rows))
    refuse_index(file, words)


def test_wrong_tables_under_right_checksums(prefix):
    file = Path(prefix + ".index")
    file.write_bytes(table([HEADER], kind=1))
    refuse_index(file, r"a block is compressed \(kind 1\)")
    for body, words in (
        (b"\x05\x01\x00a" + bytes(4) + b"\1\0\0\0", "begins like a longer one"),
        (b"\x00\x7f\x00a" + bytes(4) + b"\1\0\0\0", "a length leads past the end"),
        (b"\xff\xff\xff\x7f", "no room for its restart points"),
        (b"", "no room for its restart points"),
    ):
        content = body + b"\0"
        index = content + masked(content).to_bytes(4, "little")
        footer = bytes(2) + b"\0" + bundle_writer.varint(len(body))
        magic = bundle_writer.MAGIC.to_bytes(8, "little")
        file.write_bytes(index + footer.ljust(40, b"\0") + magic)
        refuse_index(file, words)


def test_a_text_is_no_index(prefix):
    file = Path(prefix + ".index")
    for content in (b"", b"no index at all, but long enough for a footer of 48 bytes"):
        file.write_bytes(content)
        refuse_index(file, "does not end like a TensorFlow index")


def test_damaged_data(prefix):
    write_bundle(prefix, tensors(3))
    index = read_index(Path(prefix + ".index"), where=prefix)
    file = Path(prefix + ".data-00000-of-00001")
    whole = file.read_bytes()
    last = index.entries["model/h2/attn/c_proj"]

    def refuse(words, changed=last):
        with pytest.raises(CheckpointError, match=words) as caught:
            read_tensor("w", changed, file, where="here")
        assert str(caught.value).startswith("here: w ")
        assert "\n" not in str(caught.value)

    file.write_bytes(whole[:-1])
    refuse("in model.ckpt-7.data-00000-of-00001 is damaged or cut short: it ends at 71 of 72 bytes")
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refuse("damaged or cut short: its checksum is wrong")
    file.write_bytes(whole)
    assert read_tensor("w", last, file, where="here").shape == (3, 3)
    file.unlink()
    refuse("No such file")


def test_sizes_are_not_believed(prefix):
    """A terabyte is not asked for because an index says so."""
    shape = (1 << 20, 1 << 18)
    rows = [
        HEADER,
        (b"huge", entry(dtype=1, shape=shape, shard=0, offset=0, size=1 << 40, checksum=0)),
        (b"other", entry(dtype=1, shape=(3,), shard=0, offset=0, size=8, checksum=0)),
        (b"unknown", entry(dtype=1, shape=(-1,), shard=0, offset=0, size=8, checksum=0)),
        (b"before", entry(dtype=1, shape=(2,), shard=0, offset=-8, size=8, checksum=0)),
        (b"sliced", entry(dtype=1, shape=(3,), shard=0, offset=0, size=0, checksum=0, sliced=True)),
        (b"\x00sliced\xff\x01", entry(dtype=1, shape=(3,), shard=0, offset=0, size=8, checksum=0)),
    ]
    file = Path(prefix + ".index")
    file.write_bytes(table(rows))
    data = Path(prefix + ".data-00000-of-00001")
    data.write_bytes(bytes(8))
    entries = read_index(file, where=prefix).entries
    for name, words in (
        ("huge", "it ends at 8 of 1099511627776 bytes"),
        ("other", r"8 bytes for shape \(3,\)"),
        ("unknown", "8 bytes for shape"),
        ("before", "it ends at 8 of"),
        ("sliced", "sliced is stored in slices"),
    ):
        with pytest.raises(CheckpointError, match=words):
            read_tensor(name, entries[name], data, where=prefix)


@pytest.mark.parametrize(
    ("content", "checksum"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_masked_checksums_are_the_published_ones_unmasked(content, checksum):
    assert masked_crc32c(content) == masked(content)
    rotated = (masked_crc32c(content) - 0xA282EAD8) % 2**32  # Unmask of leveldb/util/crc32c.h
    assert (rotated >> 17 | rotated << 15) % 2**32 == checksum


def test_without_the_checksum_library_the_extra_is_named(prefix, monkeypatch):
    write_bundle(prefix, tensors(3))
    monkeypatch.setitem(sys.modules, "google_crc32c", None)
    with pytest.raises(CheckpointError, match=r"google-crc32c: pip install 'igpt\[openai\]'$"):
        read(prefix)


@pytest.mark.parametrize("n_parts", [1, 3])
def test_what_tensorflow_writes(tmp_path, prefix, n_parts):
    """Savers write a part on each host and merge them, which numbers the data files."""
    tf = pytest.importorskip("tensorflow")
    rng = np.random.default_rng(0)
    arrays = {
        f"model/h{i}/attn/q_proj": rng.normal(size=(2, 3, i + 1)).astype(np.float32)
        for i in range(200)
    }
    arrays["model/large"] = rng.normal(size=(3000, 100)).astype(np.float32)
    arrays["model/half"] = arrays["model/large"][:7].astype(np.float16)
    arrays["model/double"] = arrays["model/large"][:7].astype(np.float64)
    arrays["model/scalar"] = np.float32(2.5)
    values = {name: tf.constant(array) for name, array in arrays.items()}
    values["model/brain"] = tf.constant(arrays["model/large"][:5], tf.bfloat16)
    values["global_step"] = tf.constant(131000, tf.int64)
    names = list(values)
    parts = [f"{prefix}_part{i}" for i in range(n_parts)]
    for i, part in enumerate(parts):
        here = names[i::n_parts]
        tf.raw_ops.SaveV2(
            prefix=part,
            tensor_names=here,
            shape_and_slices=[""] * len(here),
            tensors=[values[name] for name in here],
        )
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=prefix)
    assert Path(f"{prefix}.data-00000-of-{n_parts:05d}").exists()
    found = read(prefix)
    assert found.keys() == {*arrays, "model/brain"}
    for name, array in arrays.items():
        assert np.array_equal(found[name].numpy(), array), name
    brain = values["model/brain"]
    assert found["model/brain"].dtype is torch.bfloat16
    assert np.array_equal(found["model/brain"].float().numpy(), tf.cast(brain, tf.float32).numpy())
    index = read_index(Path(prefix + ".index"), where=prefix)
    assert index.entries["global_step"].dtype is None


def test_the_writer_of_these_tests_is_one_for_tensorflow(prefix):
    tf = pytest.importorskip("tensorflow")
    write_bundle(prefix, tensors(), n_shards=3, rows_per_block=7)
    reader = tf.train.load_checkpoint(prefix)
    assert reader.get_variable_to_shape_map().keys() == tensors().keys()
    for name, array in tensors().items():
        assert np.array_equal(reader.get_tensor(name), array)
    for name, number in DTYPES.items():
        assert tf.dtypes.as_dtype(name).as_datatype_enum == number
