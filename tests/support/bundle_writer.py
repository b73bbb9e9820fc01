"""A writer of TensorFlow's checkpoints for tests, made from the formats alone: slow and plain."""

from pathlib import Path

import numpy as np

MAGIC = 0xDB4775248B80FB57
DTYPES = {"float32": 1, "float64": 2, "int32": 3, "int64": 9, "bfloat16": 14, "float16": 19}
CRC_TABLE = []
for byte in range(256):
    crc = byte
    for _ in range(8):
        crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    CRC_TABLE.append(crc)


def crc32c(content):
    crc = 0xFFFFFFFF
    for byte in content:
        crc = (crc >> 8) ^ CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def masked(content):
    crc = crc32c(content)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) % 2**32


def varint(number):
    number %= 2**64
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def field(number, value):
    """Encodes a field of a protobuf message: a number, text, or four bytes of a fixed number."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def fixed32(number, value):
    return varint(number << 3 | 5) + value.to_bytes(4, "little")


def entry(*, dtype, shape, shard, offset, size, checksum, sliced=False):
    """Encodes a BundleEntryProto; fields that are zero are left out, as protobuf does."""
    dims = b"".join(field(2, field(1, side) if side else b"") for side in shape)
    message = field(1, dtype) + field(2, dims)
    for number, value in ((3, shard), (4, offset), (5, size)):
        message += field(number, value) if value else b""
    return message + fixed32(6, checksum) + (field(7, b"") if sliced else b"")


def header(n_shards, *, endianness=0):
    """Encodes a BundleHeaderProto: shards, byte order, version."""
    order = field(2, endianness) if endianness else b""
    return field(1, n_shards) + order + field(3, field(1, 1))


def block(rows, *, restart_interval=16):
    """Encodes a table's block: names share the start of the one before, but at restart points."""
    out, restarts, last = bytearray(), [], b""
    for i, (key, value) in enumerate(rows):
        shared = 0
        if i % restart_interval:
            while shared < min(len(key), len(last)) and key[shared] == last[shared]:
                shared += 1
        else:
            restarts.append(len(out))
        out += varint(shared) + varint(len(key) - shared) + varint(len(value))
        out += key[shared:] + value
        last = key
    for restart in restarts or [0]:
        out += restart.to_bytes(4, "little")
    return bytes(out) + max(1, len(restarts)).to_bytes(4, "little")


def table(rows, *, rows_per_block=1000, restart_interval=16, kind=0):
    """Encodes a whole index file; kind: the byte that says how blocks are compressed."""
    out = bytearray()

    def put(content):
        offset = len(out)
        out.extend(content)
        out.append(kind)
        out.extend(masked(content + bytes([kind])).to_bytes(4, "little"))
        return varint(offset) + varint(len(content))

    rows = sorted(rows)
    handles = []
    for start in range(0, len(rows), rows_per_block):
        part = rows[start : start + rows_per_block]
        # any name between this block's last and the next one's first will do
        handles.append((part[-1][0] + b"\0", put(block(part, restart_interval=restart_interval))))
    meta = put(block([]))
    footer = meta + put(block(handles, restart_interval=1))
    return bytes(out) + footer.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")


def write_bundle(prefix, tensors, *, n_shards=1, dtypes=None, **layout):
    """Writes PREFIX.index and its data files, tensors dealt out to the shards in turn.

    Args:
        tensors: name to array; of bfloat16: its bits as uint16, with dtypes[name] = "bfloat16".
        layout: see `table`.
    """
    data = [bytearray() for _ in range(n_shards)]
    rows = [(b"", header(n_shards))]
    for i, (name, array) in enumerate(tensors.items()):
        content = np.asarray(array).tobytes()
        shard = data[i % n_shards]
        dtype = (dtypes or {}).get(name, str(np.asarray(array).dtype))
        message = entry(
            dtype=DTYPES[dtype],
            shape=np.shape(array),
            shard=i % n_shards,
            offset=len(shard),
            size=len(content),
            checksum=masked(content),
        )
        shard += content
        rows.append((name.encode(), message))
    for i, content in enumerate(data):
        Path(f"{prefix}.data-{i:05d}-of-{n_shards:05d}").write_bytes(content)
    Path(f"{prefix}.index").write_bytes(table(rows, **layout))


def openai_variables(seed, *, n_layer=2, width=24, n_head=3, n_colors=16, n_positions=16):
    """Draws random weights under OpenAI's names and in its shapes, and what an optimizer adds."""
    rng = np.random.default_rng(seed)
    shapes = {
        "wte": (n_colors, width),
        "wtet": (n_colors, width),
        "sos": (width,),
        "wpe": (n_positions, width),
        "ln_f/g": (width,),
    }
    for i in range(n_layer):
        shapes |= {
            f"h{i}/ln_1/g": (width,),
            f"h{i}/attn/q_proj": (n_head, width // n_head, width),
            f"h{i}/attn/k_proj": (n_head, width // n_head, width),
            f"h{i}/attn/v_proj": (n_head, width // n_head, width),
            f"h{i}/attn/c_proj": (n_head, width // n_head, width),
            f"h{i}/ln_2/g": (width,),
            f"h{i}/mlp/c_fc/w": (1, width, 4 * width) if i % 2 else (width, 4 * width),
            f"h{i}/mlp/c_proj/w": (1, 4 * width, width) if i % 2 else (4 * width, width),
        }
    variables = {
        f"model/{name}": rng.normal(name.endswith("/g"), 0.3, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    variables["model/wte/Adam"] = variables["model/wte"] * 0
    variables["beta1_power"] = np.float32(0.9)
    variables["global_step"] = np.int64(131000)
    return variables
