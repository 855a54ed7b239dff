"""Damage to the files of an input: of bytes, of rows and fields, of numbers, of members and their names.

Each mutation takes the files and a generator, and returns the files, or None where it does not apply.
"""

import io
import re
import struct
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq

NUMBERS = [
    *(
        "0",
        "-1",
        "1",
        "1e308",
        "-1e308",
        "NaN",
        "Infinity",
        "-0",
        "1.5",
        "2147483648",
        "-2147483649",
        "9007199254740993",
    ),
    *("18446744073709551616", "1" + "0" * 400, "9" * 5000, "0x10", "1_0", "", "null", "true", '"x"', "[]", "{}", "٣"),
]
_BINARY = [0, 1, 2, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1]
_NUMBER = re.compile(rb"-?[0-9]+(?:\.[0-9]+)?")


def _pick(draw, items):
    items = list(items)
    return items[int(draw.integers(len(items)))]


def _stretch(draw, size):
    begin = int(draw.integers(size + 1))
    return begin, min(size, begin + int(draw.integers(1, _pick(draw, (2, 9, 65, 600)))))


def of_bytes(data, draw):
    """Flipped, cut, spliced, repeated, or eight of them become a number."""
    data = bytearray(data)
    begin, end = _stretch(draw, len(data))
    match int(draw.integers(7)):
        case 0:
            for place in draw.integers(len(data), size=int(draw.integers(1, 9))) if data else ():
                data[place] ^= 1 << int(draw.integers(8))
        case 1:
            del data[begin:]
        case 2:
            del data[begin:end]
        case 3:
            data[begin:begin] = draw.bytes(end - begin)
        case 4:
            data[begin:begin] = data[begin:end]
        case 5:
            other, _ = _stretch(draw, len(data))
            data[begin:end] = data[other : other + end - begin]
        case _:
            packed = struct.pack("<Q", _pick(draw, _BINARY))[: _pick(draw, (1, 2, 4, 8))]
            data[begin : begin + len(packed)] = packed
    return bytes(data)


def _lines(data):
    return data.splitlines(keepends=True)


def rows(data, draw):
    """Two rows in each other's place, one left out, or one somewhere else."""
    lines = _lines(data)
    if len(lines) < 2:
        return None
    one, other = (int(place) for place in draw.integers(len(lines), size=2))
    if draw.integers(2):
        lines[one], lines[other] = lines[other], lines[one]
    else:
        line = lines.pop(one)
        if draw.integers(2):
            lines.insert(other, line)
    return b"".join(lines)


def row_twice(data, draw):
    """A row stands twice."""
    lines = _lines(data)
    if len(lines) < 2:
        return None
    place = int(draw.integers(len(lines)))
    line = lines[place] if lines[place].endswith(b"\n") else lines[place] + b"\n"
    lines[place : place + 1] = [line, lines[place]]
    return b"".join(lines)


def _separator(line):
    return next((mark for mark in (b",", b"\t", b" ", b":") if mark in line), None)


def fields(data, draw):
    """Two fields of a row in each other's place, one left out, or one twice."""
    lines = _lines(data)
    place = int(draw.integers(len(lines))) if lines else 0
    mark = _separator(lines[place]) if lines else None
    if mark is None:
        return None
    body = lines[place].rstrip(b"\r\n")
    cells, end = body.split(mark), lines[place][len(body) :]
    one, other = (int(n) for n in draw.integers(len(cells), size=2))
    match int(draw.integers(3)):
        case 0:
            cells[one], cells[other] = cells[other], cells[one]
        case 1:
            del cells[one]
        case _:
            cells.insert(other, cells[one])
    lines[place] = mark.join(cells) + end
    return b"".join(lines)


def column_twice(data, draw):
    """A column of a table stands twice, with other values."""
    lines = _lines(data)
    head = next((n for n, line in enumerate(lines) if not line.startswith(b"#")), None)
    if head is None or b"," not in lines[head] or b'"' in data or not re.match(rb"[A-Za-z_]", lines[head]):
        return None
    column, first = int(draw.integers(lines[head].count(b",") + 1)), bool(draw.integers(2))
    for place in range(head, len(lines)):
        body = lines[place].rstrip(b"\r\n")
        cells, end = body.split(b","), lines[place][len(body) :]
        again = cells[column] if place == head else _pick(draw, (b"0", b"1", b"2"))
        lines[place] = b",".join([again, *cells] if first else [*cells, again]) + end
    return b"".join(lines)


def key_twice(data, draw):
    """A key of a JSON object or of YAML stands twice, with another value."""
    found = list(re.finditer(rb'"[A-Za-z_0-9]{1,40}" ?: ', data)) or list(re.finditer(rb"(?m)^ *[a-z_]+: (?=\S)", data))
    if not found:
        return None
    chosen = _pick(draw, found)
    value = _pick(draw, (b"1", b"7", b"[1, 2]", b'"x"', b"null"))
    again = chosen[0] + value + (b", " if chosen[0].startswith(b'"') else b"\n")
    return data[: chosen.start()] + again + data[chosen.start() :]


def number(data, draw):
    """Another number, or something else, where a number stands in text."""
    found = list(_NUMBER.finditer(data))
    if not found or b"\0" in data:
        return None
    for chosen in sorted({_pick(draw, found) for _ in range(int(draw.integers(1, 3)))}, key=lambda f: -f.start()):
        data = data[: chosen.start()] + _pick(draw, NUMBERS).encode() + data[chosen.end() :]
    return data


def long_text(data, draw):
    """A very long string, or depth, somewhere."""
    begin, _ = _stretch(draw, len(data))
    what = _pick(draw, (b"x", b"7", b"[", b"{", b'{"a":', b",", b"\n", b" ", b'"', b"#", b"- ", b"\xff", b"&a [*a,"))
    return data[:begin] + what * int(_pick(draw, (300, 5_000, 100_000))) + data[begin:]


def _repacked(data, draw):
    """A zip (`.npz`, `.pt`) with damage inside, which its checksums then fit."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(name, archive.read(name)) for name in archive.namelist()]
    place = int(draw.integers(len(entries)))
    name, content = entries[place]
    match int(draw.integers(4)):
        case 0:
            entries[place] = (_pick(draw, entries)[0], content)
        case 1:
            del entries[place]
        case 2:
            # the header of an array, or a pickle, is text in parts
            entries[place] = (name, number(content[:200], draw) or b"")
            entries[place] = (name, entries[place][1] + content[200:])
        case _:
            entries[place] = (name, of_bytes(content, draw))
    return zipped(entries)


def _columns(data, draw):
    """A Parquet file with columns left out, in another's place or twice, rows cut, or other metadata."""
    table = pq.read_table(io.BytesIO(data))
    place, other = (int(n) for n in draw.integers(table.num_columns, size=2))
    name = table.column_names[place]
    match int(draw.integers(6)):
        case 0:
            table = table.remove_column(place)
        case 1:
            table = table.set_column(place, name, table.column(other))
        case 2:
            table = table.append_column(name, table.column(other))
        case 3:
            table = table.slice(int(draw.integers(table.num_rows + 1)))
        case 4:
            table = table.take(pa.array(draw.integers(table.num_rows, size=table.num_rows)))
        case _:
            metadata = table.schema.metadata or {}
            table = table.replace_schema_metadata({key: any_text(value, draw) for key, value in metadata.items()})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


_TEXT = {"rows": rows, "fields": fields, "number": number, "long text": long_text, "bytes": of_bytes}
STRICT = {"row twice": row_twice, "column twice": column_twice, "key twice": key_twice}
"""What must be refused, or change nothing."""


def any_text(data, draw):
    """One of the mutations of text, or the same."""
    return _pick(draw, _TEXT.values())(data, draw) or data


def structured(data, draw):
    """Damage inside a container, which keeps its form; None for other files."""
    try:
        if data.startswith(b"PK"):
            return _repacked(data, draw)
        return _columns(data, draw) if data.startswith(b"PAR1") else None
    except Exception:  # noqa: BLE001 - damage of a former turn
        return None


def _names(files, draw):
    """A file is renamed, left out, empty, or stands under a second name."""
    name, again = _pick(draw, files), dict(files)
    match int(draw.integers(5)):
        case 0:
            del again[name]
        case 1:
            again[name] = b""
        case 2:
            again[name] = files[_pick(draw, files)]
        case 3:
            again[_pick(draw, ("x", "a/", "..x/", ".", "é", "_")) + name] = again.pop(name)
        case _:
            again[re.sub(r"([0-9]+)", lambda found: str(int(found[1]) + 1), name, count=1)] = files[name]
    return again


def zeros_twice(files, draw):
    """A file stands a second time under a name that differs in zeros alone, with other content."""
    named = [name for name in files if re.search(r"[0-9]", name)]
    if not named:
        return None
    name = _pick(draw, named)
    places = [found.start() for found in re.finditer(r"(?<![0-9])[0-9]", name)]
    place = _pick(draw, places)
    return files | {f"{name[:place]}0{name[place:]}": files[_pick(draw, files)]}


def mutated(files, draw):
    """One to three mutations of the files: what was done, and the files."""
    if draw.integers(30) == 0 and (again := zeros_twice(files, draw)) is not None:
        return "zeros twice", again
    if draw.integers(12) == 0:
        return "names", _names(files, draw)
    files, done = dict(files), "bytes"
    for turn in range(int(draw.integers(1, 4))):
        name = _pick(draw, files)
        kind, mutation = _pick(draw, (*_TEXT.items(), ("structured", structured), *STRICT.items()))
        changed = mutation(files[name], draw)
        if changed is None:
            kind, changed = "bytes", of_bytes(files[name], draw)
        files[name], done = changed, kind
        if turn:  # the first one may have changed the result already
            done = "several"
        if kind in STRICT:
            break
    return done, files


def zipped(entries):
    """A zip of names and contents; a name may stand twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def packed(files, draw):
    """The files as an archive, at times damaged or with a member twice: its ending, what was done, and its bytes."""
    entries, done = list(files.items()), "packed"
    if entries and draw.integers(4) == 0:
        name, _ = _pick(draw, entries)
        entries.append((name, _pick(draw, entries)[1]))
        done = "member twice"
    ending = _pick(draw, ("zip", "tar", "tar.gz", "tar.xz", "tar.bz2"))
    if ending == "zip":
        data = zipped(entries)
    else:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=f"w:{ending[4:]}") as archive:
            for name, content in entries:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        data = buffer.getvalue()
    if done == "packed" and draw.integers(2):
        done, data = "archive bytes", of_bytes(data, draw)
    return ending, done, data
