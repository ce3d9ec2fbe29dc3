"""Mutations of files: bytes and pieces anywhere, and values behind checksums and syntax. The same generator, the same file."""

from __future__ import annotations

import io
import json
import random
import zipfile
import zlib
from typing import Any

EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**40, 2**63 - 1, 2**64 - 1)
PNG = b"\x89PNG\r\n\x1a\n"


def vary(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """`mutate`, half of the time behind the checksums and the syntax that would otherwise catch most of it."""
    if rng.random() < 0.5:
        return mutate(data, other, rng)
    if data.startswith(PNG):
        return _png_with_checksums(mutate(data, other, rng))
    if data.startswith(b"PK"):
        return _zip_of_mutated(data, other, rng)
    if data.startswith(b"{"):
        lines = data.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = _odd_value(lines[at], rng)
        return b"\n".join(lines) + b"\n"
    if data[8:9] == b"{":
        end = 8 + int.from_bytes(data[:8], "little")
        header = _odd_value(data[8:end], rng)
        return len(header).to_bytes(8, "little") + header + data[end:]
    return mutate(data, other, rng)


def mutate(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes to `data`; pieces are spliced in from `other`. At most 64 KiB longer than it was."""
    most = len(data) + 65536
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        # headers are at the front or, in a zip file, at the end: half of the changes go there
        if rng.random() < 0.5:
            at = min(at, rng.randrange(96)) if rng.random() < 0.7 else max(at, len(out) - rng.randrange(1, 160))
        size = rng.choice((1, 2, 4, 8, rng.randrange(1, 512)))
        kind = rng.randrange(8)
        if kind == 0 and out:
            out[min(at, len(out) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + size] = rng.randbytes(min(size, 16))
        elif kind == 2:
            del out[at : None if rng.random() < 0.5 else at + size]
        elif kind == 3:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(EXTREME) & (256**width - 1)
            out[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 4:
            out[at:at] = out[at : at + size] * rng.choice((1, 1, 2, 100))
        elif kind == 5:
            start = rng.randrange(len(other) + 1)
            out[at : at + rng.choice((0, size))] = other[start : start + size]
        elif kind == 6:
            start = rng.randrange(len(out) + 1)
            out[at:at] = out[start : start + size]
        else:
            out = _number(out, rng)
    return bytes(out[:most])


def _png_with_checksums(data: bytes) -> bytes:
    out, at = bytearray(data), len(PNG)
    while at + 12 <= len(out):
        end = at + 8 + int.from_bytes(out[at : at + 4], "big")
        if end + 4 > len(out):
            break
        out[end : end + 4] = zlib.crc32(out[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


def _zip_of_mutated(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """The archive with one of its members mutated (the pickle most of the time), doubled or left out."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(packed, "w") as new:
        names = old.namelist()
        chosen = rng.choice([*names, *[name for name in names if name.endswith(".pkl")] * 3 * len(names)])
        for name in names:
            content = old.read(name)
            if name != chosen:
                new.writestr(name, content)
            elif rng.random() < 0.95:
                method = zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED
                new.writestr(name, mutate(content, other, rng), method)
    return packed.getvalue()


def _odd_value(line: bytes, rng: random.Random) -> bytes:
    """A JSON object with one of the values or keys in it replaced, left out or added."""
    content = json.loads(line)
    inside = [content]
    for value in inside:
        inside += [v for v in (value.values() if isinstance(value, dict) else value) if isinstance(v, (dict, list))]
    chosen = rng.choice(inside)
    odd: Any = rng.choice(
        (-1, 0, 2.5, None, True, "", "7", "..", "/etc/x", "a\0b", "\udc80\n", [], {}, [1, 2], {"npy": "x"})
    )
    odd = rng.choice((odd, rng.choice(EXTREME), float("nan"), json.loads("[" * 400 + "]" * 400)))
    keys = list(chosen) if isinstance(chosen, dict) else range(len(chosen))
    if keys and rng.random() < 0.8:
        chosen[rng.choice(keys)] = odd
    elif keys and rng.random() < 0.5:
        chosen.pop(rng.choice(keys))
    elif isinstance(chosen, dict):
        chosen[rng.choice(("error", "name", "npy", "native", "x"))] = odd
    else:
        chosen.append(odd)
    return json.dumps(content).encode()


def _number(out: bytearray, rng: random.Random) -> bytearray:
    """Replace a digit, as in a number in JSON, by an odd value."""
    digits = [i for i, byte in enumerate(out) if 48 <= byte <= 57]
    if digits:
        at = rng.choice(digits)
        odd = (
            b"-1",
            b"0",
            b"1e999",
            b"NaN",
            b"null",
            b"true",
            b'"7"',
            b"[]",
            b"{}",
            b"9" * 5000,
            b"[" * 3000,
            b"2.5",
            b"[" * 700 + b"]" * 700,
            b'"\\u0000"',
            b'"\\udc80"',
        )
        out[at : at + 1] = rng.choice((*odd, str(rng.choice(EXTREME)).encode()))
    return out
