"""The safetensors format read strictly and in plain Python, and ways to spoil a file of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {  # those that a parameter may have
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
BITS = {name: 8 * dtype.itemsize for name, dtype in DTYPES.items()} | {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"], 8),
    **{"I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64, "C64": 64},
    **{"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6},
}
Header = dict[str, Any]


class RefusedError(Exception):
    """The strict reader takes a file for no safetensors file."""


def need(condition: Any) -> None:
    if not condition:
        raise RefusedError


def whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**64


def strict_read(content: bytes) -> dict[str, np.ndarray]:
    """Return every float tensor of a file as float32. Raises RefusedError for whatever the format does not allow."""
    need(len(content) >= 8)
    length = int.from_bytes(content[:8], "little")
    need(length <= 100_000_000 and 8 + length <= len(content))
    try:
        text = content[8 : 8 + length].decode("utf-8")
        header = json.loads(text, object_pairs_hook=unrepeated, parse_constant=refuse, parse_float=finite)
        json.dumps(header, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise RefusedError from None
    need(text.startswith("{") and isinstance(header, dict))
    metadata = header.pop("__metadata__", None)
    if metadata is not None:  # null is read as none at all
        need(isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values()))
    data, found, spans = content[8 + length :], {}, []
    for name, entry in header.items():
        need(isinstance(entry, dict) and entry.keys() >= {"dtype", "shape", "data_offsets"})
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        need(isinstance(dtype, str) and dtype in BITS)
        need(isinstance(shape, list) and all(map(whole, shape)))
        need(len(shape) <= 64)  # NumPy has no more axes, whatever the format says
        need(all(whole(math.prod(shape[:axes])) for axes in range(len(shape))))  # counted from the left, in 64 bits
        need(isinstance(offsets, list) and len(offsets) == 2 and all(map(whole, offsets)))
        begin, end = offsets
        need(begin <= end <= len(data) and 8 * (end - begin) == math.prod(shape) * BITS[dtype])
        spans.append((begin, end))
        if dtype in DTYPES:
            values = np.frombuffer(data[begin:end], DTYPES[dtype])
            values = values.reshape(shape) if values.size else values  # NumPy holds no empty shape of 2^63 rows
            with np.errstate(over="ignore", invalid="ignore"):
                found[name] = values.astype(np.float32)
                need(np.isinf(found[name]).sum() == np.isinf(values.astype(np.float64)).sum())
    place = 0
    for begin, end in sorted(spans):
        need(begin == place)
        place = end
    need(place == len(data))
    return found


def unrepeated(pairs: list[tuple[str, Any]]) -> Header:
    need(len(dict(pairs)) == len(pairs))
    return dict(pairs)


def refuse(_: str) -> Any:
    raise RefusedError


def finite(text: str) -> float:
    need(math.isfinite(float(text)))  # the library reads no number beyond float64, even where none is used
    return float(text)


# Spoiling -------------------------------------------------------------------------------------------------------------


def sound(generator: np.random.Generator) -> tuple[Header, bytes]:
    """Return the header and the data of a small file: a few tensors of several dtypes, some empty or of rank 0."""
    header: Header = {"__metadata__": {"format": "pt"}} if generator.random() < 0.5 else {}
    data = b""
    for number in range(int(generator.integers(0, 5))):
        dtype = str(generator.choice([*DTYPES, "I64", "BOOL"]))
        shape = [int(size) for size in generator.integers(0, 4, int(generator.integers(0, 4)))]
        size = math.prod(shape) * BITS[dtype] // 8
        header[f"tensor.{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + size]}
        if dtype == "F64" and generator.random() < 0.8:  # random bytes are mostly beyond float32
            data += generator.standard_normal(size // 8).tobytes()
        else:
            data += bytes(generator.integers(0, 2, size, np.uint8)) if dtype == "BOOL" else generator.bytes(size)
    return header, data


def packed(header: Any, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ODD: list[Any] = [0, 1, -1, 3, 7, 8, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 2**64 + 3, 1.0, 2.5, 1e300]
ODD += [True, None, "4", [], {}]


def mutate(generator: np.random.Generator) -> bytes:
    """Return a file with one to three faults, or with none."""
    header, data = sound(generator)
    for _ in range(int(generator.integers(0, 3))):
        header, data = STRUCTURED[int(generator.integers(len(STRUCTURED)))](generator, header, data)
    content = packed(header, data)
    if generator.random() < 0.5:
        content = RAW[int(generator.integers(len(RAW)))](generator, content)
    return content


def some(generator: np.random.Generator, header: Header) -> Any:
    names = [name for name in header if name != "__metadata__"]
    entry = header[names[int(generator.integers(len(names)))]] if names else {}
    return entry if isinstance(entry, dict) else {}


def odd(generator: np.random.Generator) -> Any:
    return ODD[int(generator.integers(len(ODD)))]


def spoil_offset(generator: np.random.Generator, header: Header, data: bytes) -> tuple[Header, bytes]:
    offsets = some(generator, header).get("data_offsets")
    if isinstance(offsets, list) and offsets:
        place = int(generator.integers(len(offsets)))
        shift = int(generator.integers(-9, 10))
        offsets[place] = (
            offsets[place] + shift if type(offsets[place]) is int and generator.random() < 0.6 else odd(generator)
        )
    return header, data


def spoil_shape(generator: np.random.Generator, header: Header, data: bytes) -> tuple[Header, bytes]:
    entry = some(generator, header)
    if isinstance(shape := entry.get("shape"), list):
        if generator.random() < 0.2:
            entry["shape"] = [2**32, 2**32, *shape]  # a product that wraps to 0 in 64 bits
        elif 0 in shape and generator.random() < 0.5:
            entry["shape"] = [2**62, 0]  # which is legal
        elif shape and generator.random() < 0.7:
            shape[int(generator.integers(len(shape)))] = odd(generator)
        else:
            shape.append(odd(generator))
    return header, data


def spoil_dtype(generator: np.random.Generator, header: Header, data: bytes) -> tuple[Header, bytes]:
    wrong = [*BITS, "C65", "f32", "F31", "", None, 3]
    if entry := some(generator, header):
        entry["dtype"] = wrong[int(generator.integers(len(wrong)))]
    return header, data


def spoil_keys(generator: np.random.Generator, header: Header, data: bytes) -> tuple[Header, bytes]:
    entry = some(generator, header)
    choice = int(generator.integers(5))
    if choice == 0 and entry:
        entry.pop(list(entry)[int(generator.integers(len(entry)))])
    elif choice == 1 and entry:
        entry["more"] = odd(generator)
    elif choice == 2:
        header["__metadata__"] = odd(generator)
    elif choice == 3:
        header["__metadata__"] = {"a": odd(generator)}
    else:
        header[f"tensor.{generator.integers(5)}"] = odd(generator)
    return header, data


def swap_tensors(generator: np.random.Generator, header: Header, data: bytes) -> tuple[Header, bytes]:
    first, second = some(generator, header), some(generator, header)
    if first.get("data_offsets") and second.get("data_offsets"):
        first["data_offsets"], second["data_offsets"] = second["data_offsets"], first["data_offsets"]
    return header, data


def spoil_form(generator: np.random.Generator, header: Header, data: bytes) -> tuple[Header, bytes]:
    """Say the same in a way that only the library understands, or with more axes than NumPy has."""
    entry = some(generator, header)
    choice = int(generator.integers(4))
    if choice == 0:
        header |= {name: list(value.values()) for name, value in header.items() if value is entry}
    elif choice == 1 and isinstance(entry.get("dtype"), str):
        entry["dtype"] = {entry["dtype"]: None}
    elif choice == 2 and isinstance(entry.get("shape"), list):
        entry["shape"] = [1] * int(generator.integers(60, 70)) + entry["shape"]
    elif isinstance(entry.get("data_offsets"), list):
        entry["data_offsets"] = dict(enumerate(entry["data_offsets"]))
    return header, data


def more_or_less_data(generator: np.random.Generator, header: Header, data: bytes) -> tuple[Header, bytes]:
    cut = int(generator.integers(0, 9))
    return header, data + bytes(cut) if generator.random() < 0.5 else data[: max(0, len(data) - cut)]


STRUCTURED = [spoil_offset, spoil_shape, spoil_dtype, spoil_keys, swap_tensors, spoil_form, more_or_less_data]


def flip(generator: np.random.Generator, content: bytes) -> bytes:
    spoiled = bytearray(content)
    for _ in range(int(generator.integers(1, 4))):
        spoiled[int(generator.integers(len(spoiled)))] ^= 1 << int(generator.integers(8))
    return bytes(spoiled)


def cut(generator: np.random.Generator, content: bytes) -> bytes:
    return content[: int(generator.integers(len(content) + 1))]


def other_length(generator: np.random.Generator, content: bytes) -> bytes:
    lengths = [0, 1, 2, len(content) - 8, len(content), 10**8, 10**8 + 1, 2**31, 2**63 - 1, 2**64 - 1, 2**64 - 8]
    return lengths[int(generator.integers(len(lengths)))].to_bytes(8, "little") + content[8:]


def splice(generator: np.random.Generator, content: bytes) -> bytes:
    other = packed(*sound(generator))
    return cut(generator, content) + other[int(generator.integers(len(other))) :]


def in_header(generator: np.random.Generator, content: bytes) -> bytes:
    """Put something into the header's text, and count it in the length."""
    length = int.from_bytes(content[:8], "little")
    text, data = content[8 : 8 + length], content[8 + length :]
    pieces = [
        b" ",
        b"\n",
        b"\x00",
        b"\xff",
        b"NaN",
        b"Infinity",
        b"[" * 3000,
        b'"tensor.0": 1, ',
        b"\\ud800",
        b"//",
        b"1e5",
    ]
    place = int(generator.integers(len(text) + 1))
    kind = generator.random()
    if kind < 0.2:
        text += b" " * int(generator.integers(9))  # padding, which the format allows
    elif kind < 0.4 and text.startswith(b'{"tensor.0": {'):
        text = b'{"tensor.0": ' + text[13 : text.index(b"}") + 1] + b", " + text[1:]  # the same name twice
    elif kind < 0.45:
        text = text.replace(b'"tensor.0"', b'"\\ud800"').replace(b'"tensor.1"', b'"\\ud800"')  # half a character, twice
    elif kind < 0.55:
        text = text.replace(b'"tensor.1"', b'"tensor.\\u0030"')  # another spelling of tensor.0
    else:
        text = text[:place] + pieces[int(generator.integers(len(pieces)))] + text[place:]
    return packed(text, data)


RAW: list[Callable[[np.random.Generator, bytes], bytes]] = [flip, cut, other_length, splice, in_header]
