"""Edits that break files: bytes, JSON, TOML, protobuf, safetensors, archives, arrays, and folders.

Each takes what a file holds and a generator of random numbers, and gives what it then holds, with
a few words on what was done.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import numpy as np
from onnx import ModelProto

_DEEP, _LONG_NUMBER, _NAN = '"@deep@"', '"@long number@"', '"@infinite@"'
_WRITTEN = {_DEEP: "[" * 50_000 + "]" * 50_000, _LONG_NUMBER: "9" * 5_000, _NAN: "1e999"}
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63 - 1),
    *(2**63, 2**64, -(2**64), 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e30, 3.5e38, 1e308, -1e308),
    *(float("nan"), float("inf"), -float("inf")),
    *("", " ", "\0", ".", "..", "../../precious.json", "/etc/passwd", "a/b", "a\\b", "CON"),
    *("\x1b[31m", "\x1b]0;t\x07", "[/]", "[bold]", "\u202e", "\ud800", "e\u0301", "日本語", "🙂"),
    *("%s%n", "{0}", "${HOME}", "a" * 300, "a" * 100_000, "12", "-1", "nan", "full", "again"),
    *("forecast2", "12/0-1:0", "x" * 65, [], {}, [[]], [None], [0] * 5_000, {"a": {"b": []}}),
    *(_DEEP.strip('"'), _LONG_NUMBER.strip('"'), _NAN.strip('"')),
)
_TOML = (
    *("-1", "0", "1", "2", "4", "3.5", "1e308", "1e999", "nan", "-inf", "9" * 30, "9" * 5_000),
    *("true", '""', '"a/b"', '"../../precious.json"', '"\\u001b[31m"', '"[/]"', '"日本語"', "[]"),
    *("[1, 1]", "[-1]", "[[[]]]", "[" * 300 + "]" * 300, "[" * 20_000 + "]" * 20_000, "{}"),
    *("{ a = 1 }", "1979-05-27T07:32:00Z", "12:00:00", '"' + "a" * 50_000 + '"', "[99999999]"),
    *('"eecompile.networks.dit:DiT"', '"os:system"', '"ddim:eta=nan"', '"cosine"', '"full"'),
    *("[3, 1]", "[1, 3]", "[0.5, 0.25]", "1000000007", '"\\ud800"', '"""', "'''\n'''", "0xff"),
)


class Edit(NamedTuple):
    """What a file holds after an edit.

    Attributes:
        data: all of it.
        told: what was done, in a few words.
        place: where in a structure; () where that is not known.
    """

    data: bytes
    told: str
    place: tuple[Any, ...] = ()


Editor = Callable[[bytes, Random], Edit]


def edited_bytes(data: bytes, draws: Random) -> Edit:
    """Flipped, cut off, doubled, overwritten or inserted bytes."""
    size = len(data)
    place = draws.randrange(size) if size else 0
    length = min(draws.choice((1, 2, 8, 100, 4096)), size - place)
    noise = draws.randbytes(max(length, 1))
    match draws.randrange(9):
        case 0 | 1 | 2:
            changed = bytearray(data)
            for _ in range(draws.choice((1, 1, 1, 3, 20)) if size else 0):
                changed[draws.randrange(size)] ^= 1 << draws.randrange(8)
            return Edit(bytes(changed), "flipped bits")
        case 3 | 4:
            return Edit(data[: draws.choice((0, 1, place, place, size - 1))], "cut off")
        case 5:
            return Edit(data + draws.choice((b"\0", noise, data, b"\n")), "lengthened")
        case 6:
            return Edit(data[:place] + noise + data[place + length :], "overwritten")
        case 7:
            return Edit(data[:place] + noise + data[place:], "inserted")
    return Edit(data[:place] + data[place + length :], "bytes left out")


def edited_json(data: bytes, draws: Random) -> Edit:
    """Values replaced, moved, doubled, left out or added anywhere in a document of JSON."""
    value = json.loads(data)
    told, place = _edited_value(value, draws)
    for _ in range(draws.choice((0, 0, 0, 0, 1, 3))):
        told = f"{told}; {_edited_value(value, draws)[0]}"
    text = json.dumps(value)
    for mark, written in _WRITTEN.items():
        text = text.replace(mark, written)
    return Edit(text.encode(), told, place)


def edited_toml(data: bytes, draws: Random) -> Edit:
    """Values replaced, lines left out, doubled or moved, tables and deep keys added."""
    lines = data.decode().splitlines()
    keys = [i for i, line in enumerate(lines) if re.match(r"\s*[\w.]+ = ", line)]
    index = draws.choice(keys)
    key, _, value = lines[index].partition(" = ")
    match draws.randrange(12):
        case 0:
            del lines[index]
            told = f"{key} left out"
        case 1:
            lines.insert(draws.randrange(len(lines)), lines[index])
            told = f"{key} doubled"
        case 2:
            other = draws.choice(keys)
            lines[index] = f"{key} = {lines[other].partition(' = ')[2]}"
            told = f"{key} as another"
        case 3:
            added = draws.choice(
                ("extra = 1", "[extra]", "[[network]]", "a." * 2_000 + "b = 1", "\0", "= 1", "é")
            )
            lines.insert(draws.randrange(len(lines) + 1), added)
            told = f"added {added[:20]!r}"
        case 4 | 5 | 6 if numbers := re.findall(r"-?\d+\.?\d*", value):
            number = draws.choice(numbers)
            near = draws.choice((f"-{number}", f"{number}0", f"{number}.5", f"{number}00000", "0"))
            lines[index] = f"{key} = {value.replace(number, near, 1)}"
            told = f"{key}: {number} to {near}"
        case _:
            new = draws.choice(_TOML)
            lines[index] = f"{key} = {new}"
            told = f"{key} = {new[:40]}"
    return Edit("\n".join(lines).encode() + b"\n", told, (key.strip(),))


def edited_onnx(data: bytes, draws: Random) -> Edit:
    """A field of a graph set to something odd, or its nodes, inputs, weights moved or left out."""
    model = ModelProto.FromString(data)
    fields = list(_fields(model))
    message, field = draws.choice(fields)
    if draws.random() < 0.25:  # where weights lie is one of many fields
        places = [pair for pair in fields if pair[1].name == "external_data"]
        message, field = draws.choice(places or fields)
    told = f"{message.DESCRIPTOR.name}.{field.name}"
    value = getattr(message, field.name)
    if not _repeated(value):
        if field.message_type is not None:
            message.ClearField(field.name)
            return Edit(model.SerializeToString(), f"{told} left out")
        new = _odd_scalar(field, value, draws)
        setattr(message, field.name, new)
        return Edit(model.SerializeToString(), f"{told} = {new!r:.40}")
    index, other = draws.randrange(len(value)), draws.randrange(len(value))
    if field.name == "external_data" and draws.random() < 0.8:
        entry = value[index]
        entry.value = draws.choice(
            (
                *("-1", "0", "1", "4096", "99999999999", str(2**63), "nan", "", entry.value + "0"),
                *("../outside/weights.safetensors", "/etc/passwd", "weights.safetensors/", "."),
            )
        )
        return Edit(model.SerializeToString(), f"{entry.key} of a weight = {entry.value!r:.40}")
    match draws.randrange(4):
        case 0:
            del value[index]
            told += f"[{index}] left out"
        case 1 if field.message_type is not None:
            value.add().CopyFrom(value[index])
            told += f"[{index}] doubled"
        case 2 if field.message_type is not None:
            first, second = type(value[index])(), type(value[index])()
            first.CopyFrom(value[index])
            second.CopyFrom(value[other])
            value[index].CopyFrom(second)
            value[other].CopyFrom(first)
            told += f"[{index}] and [{other}] exchanged"
        case _ if field.message_type is None:
            value[index] = _odd_scalar(field, value[index], draws)
            told += f"[{index}] = {value[index]!r:.40}"
        case _:
            value[index].Clear()
            told += f"[{index}] emptied"
    return Edit(model.SerializeToString(), told)


def edited_safetensors(data: bytes, draws: Random) -> Edit:
    """Its header edited as JSON, the header's length, or numbers of tensors."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    match draws.randrange(4):
        case 0:
            odd = (0, 1, length - 1, length + 1, len(data), 2**40, 2**63, 2**64 - 1)
            length = draws.choice(odd)
            return Edit(struct.pack("<Q", length) + header + body, f"a header of {length} bytes")
        case 1 if len(body) > 4:
            number = draws.choice((float("nan"), float("inf"), 3e38, -1e30, 1e-40, 0.0, 2.5))
            place = draws.randrange(len(body) // 4) * 4
            changed = body[:place] + struct.pack("<f", number) + body[place + 4 :]
            return Edit(data[: 8 + length] + changed, f"a number {number}")
        case 2:
            return Edit(data[: 8 + length] + edited_bytes(body, draws).data, "tensors' bytes")
    made = edited_json(header, draws)
    return Edit(struct.pack("<Q", len(made.data)) + made.data + body, made.told, made.place)


def edited_npy(data: bytes, draws: Random) -> Edit:
    """Its header: kind of number, shape, order, version; or its numbers."""
    version, length = data[6], struct.unpack("<H", data[8:10])[0]
    header, body = data[10 : 10 + length].decode(), data[10 + length :]
    kinds = ("'|O'", "'<f8'", "'<f2'", "'>f4'", "'|S0'", "'<U100000'", "'<c8'", "'|b1'", "'<i8'")
    shapes = ("(-1,)", "()", "(0, 1, 8, 8)", f"({2**62},)", "(9999999, 1, 8, 8)", "(1,)" * 40)
    told = "numbers"
    match draws.randrange(6):
        case 0:
            kind = draws.choice((*kinds, "[('a', '<f4')]", "'__import__(\"os\")'"))
            header = re.sub(r"'descr': '[^']*'", lambda found: f"'descr': {kind}", header)
            told = f"numbers of {kind}"
        case 1 | 2:
            shape = draws.choice(shapes)
            header = re.sub(r"'shape': \([^)]*\)", lambda found: f"'shape': {shape}", header)
            told = f"shape {shape[:20]}"
        case 3:
            header = header.replace("False", draws.choice(("True", "2", "[" * 2_000, "open('a')")))
            told = "another order"
        case 4:
            version = draws.choice((0, 2, 3, 9, 255))
            told = f"version {version}"
        case _:
            body = edited_bytes(body, draws).data
    text = header.encode()
    return Edit(data[:6] + bytes((version, 0)) + struct.pack("<H", len(text)) + text + body, told)


def edited_zip(data: bytes, draws: Random) -> Edit:
    """An archive whose entries are edited, renamed, left out, doubled, or unpack to very much."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = draws.choice(list(entries))
    match draws.randrange(8):
        case 0:
            del entries[name]
            told = f"without {name}"
        case 1:
            new = draws.choice(("../precious.json", "/etc/passwd", ".", "a" * 60_000, "arr_1.npy"))
            entries[new] = entries.pop(name)
            told = f"{name} as {new[:20]!r}"
        case 2:
            entries[draws.choice(("extra", "../outside/precious.json", "arr_0.npy"))] = b"extra"
            told = "another entry"
        case 3:
            entries[name] += bytes(400 << 20)
            told = f"{name} unpacks to 400 MiB"
        case 4 | 5 if name.endswith(".npy"):
            made = edited_npy(entries[name], draws)
            entries[name], told = made.data, f"{name}: {made.told}"
        case _:
            made = edited_bytes(entries[name], draws)
            entries[name], told = made.data, f"{name}: {made.told}"
    method = zipfile.ZIP_DEFLATED if told.endswith("MiB") else zipfile.ZIP_STORED
    return Edit(_zipped(entries, method), told)


def edited_idx(data: bytes, draws: Random) -> Edit:
    """A gzipped IDX file: its header's numbers, its bytes, or very much behind them."""
    content = bytearray(gzip.decompress(data))
    told = "bytes"
    match draws.randrange(5):
        case 0:
            place, new = draws.randrange(4), draws.randrange(256)
            content[place], told = new, f"byte {place} of the header {new}"
        case 1 | 2:
            axis = draws.randrange(3)
            length = draws.choice((0, 1, 7, 9, 2**16, 2**31, 2**32 - 1))
            struct.pack_into(">I", content, 4 + 4 * axis, length)
            told = f"axis {axis} of {length}"
        case 3:
            return Edit(gzip.compress(bytes(content) + bytes(400 << 20), 1), "400 MiB behind it")
        case _:
            return Edit(gzip.compress(edited_bytes(bytes(content), draws).data, 1), told)
    return Edit(gzip.compress(bytes(content), 1), told)


class _Command:
    """What runs a command where its pickle is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ../outside/executed",)


def with_command(data: bytes, suffix: str) -> Edit:
    """A pickle that runs a command, as a checkpoint or as an array of a kind of file has one."""
    told = "a pickle that runs a command"
    if suffix == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, np.array([_Command()], object), allow_pickle=True)
        return Edit(buffer.getvalue(), told)
    command = pickle.dumps(_Command(), protocol=2)
    if suffix == ".pth":
        return Edit(command, told)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    inner = next(name for name in entries if name.endswith((".pkl", ".npy")))
    whole = with_command(b"", ".npy").data if inner.endswith(".npy") else command
    return Edit(_zipped(entries | {inner: whole}, zipfile.ZIP_STORED), told)


def edited_place(path: Path, outside: Path, draws: Random, *, pipes: bool) -> str:
    """Put something else in a file's place: nothing, a folder, a link, or a pipe; says what."""
    kept = outside / f"kept-{path.name}"
    kinds = ("nothing", "folder", "link", "link", "dangling link", "loop")
    kind = draws.choice((*kinds, "pipe") if pipes else kinds)
    data = path.read_bytes()
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "link":
            kept.write_bytes(data)
            path.symlink_to(kept)
        case "dangling link":
            path.symlink_to(outside / "nowhere")
        case "loop":
            path.symlink_to(path)
        case "pipe":
            os.mkfifo(path)
    return f"{kind} in its place"


def copied(source: Path, place: Path) -> Path:
    """A copy of a file or a folder in a folder."""
    copy = place / source.name
    return Path(shutil.copytree(source, copy) if source.is_dir() else shutil.copy(source, copy))


def _zipped(entries: Mapping[str, bytes], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def _edited_value(root: Any, draws: Random) -> tuple[str, tuple[Any, ...]]:
    places = list(_places(root))
    if not places:
        return "nothing to change", ()
    parent, place = draws.choice(places)
    key = place[-1]
    value = parent[key]
    where = ".".join(map(str, place))
    match draws.randrange(10):
        case 0:
            del parent[key]
            return f"{where} left out", place
        case 1 if isinstance(parent, dict):
            new = draws.choice(("extra", "", "name", "../up", "a" * 5_000, "\x1b[31m", f"{key}s"))
            parent[new] = value if draws.random() < 0.5 else parent.pop(key)
            return f"{where} as {new[:20]!r}", place
        case 2 if isinstance(parent, list):
            other = draws.randrange(len(parent))
            parent[key], parent[other] = parent[other], value
            return f"{where} and {other} exchanged", place
        case 3 if isinstance(parent, list):
            parent[key:key] = [value] * draws.choice((1, 1, 2_000))
            return f"{where} repeated", place
        case 4 | 5:
            same = [p[k[-1]] for p, k in places if type(p[k[-1]]) is type(value)]
            parent[key] = json.loads(json.dumps(draws.choice(same)))
            return f"{where} = {parent[key]!r:.40} from elsewhere", place
        case 6 | 7 if isinstance(value, int | float) and not isinstance(value, bool):
            near = (value + 1, value - 1, -value, value * 2, value * 1000, 0, str(value))
            parent[key] = draws.choice(near)
        case 6 | 7 if isinstance(value, str):
            near = (value + "x", value.upper(), "../" + value, value[:-1], value * 50, value[::-1])
            parent[key] = draws.choice(near)
        case 6 | 7 if isinstance(value, list) and value:
            near = (value[::-1], value[1:], value[:-1], value * 2, [value], [])
            parent[key] = draws.choice(near)
        case _:
            parent[key] = deepcopy(draws.choice(_ODD))  # a further edit may change it
    return f"{where} = {parent[key]!r:.40}", place


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every entry of a document: what holds it, and its keys from the top."""
    keys: Any = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, (*place, key)
        if isinstance(value[key], dict | list):
            yield from _places(value[key], (*place, key))


def _fields(message: Any) -> Iterator[tuple[Any, Any]]:
    """Every field that is set in a message of protobuf, and in those within it."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for each in value if _repeated(value) else (value,):
                yield from _fields(each)


def _repeated(value: Any) -> bool:
    """Whether a field of protobuf holds several; descriptors say it differently by version."""
    return hasattr(value, "extend")


def _odd_scalar(field: Any, value: Any, draws: Random) -> Any:
    """Another value for a field of protobuf, of its type."""
    if isinstance(value, bytes):
        return edited_bytes(value, draws).data
    if isinstance(value, str):
        return draws.choice(
            ("", "x", "t", "prediction_001", "nothing", "../outside/precious.json", "a" * 10_000)
            + ("\x1b[31m", value + "x", "Loop", "Identity", "com.microsoft", "ai.onnx.ml")
        )
    if isinstance(value, float):
        return draws.choice((0.0, -value, value * 1e6, float("nan"), float("inf"), 1e-30))
    if field.enum_type is not None:
        return draws.choice([each.number for each in field.enum_type.values])
    odd = (0, 1, -1, 2, 3, 7, 100, value + 1, 2**31 - 1, 2**40, -(2**63))
    return draws.choice(odd if field.cpp_type == field.CPPTYPE_INT64 else odd[:6])
