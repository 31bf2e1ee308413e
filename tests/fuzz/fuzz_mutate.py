"""Mutations of JSON, text and files that know nothing of what they mean.

Each takes a `random.Random` and says in words what it did.
"""

import copy
import json
import math
import os
from pathlib import Path
from random import Random
from typing import Any

NUMBERS = (
    *(0, -1, 1, 2, 3, 7, 1000, 2**31, 2**63, 10**6, 10**9, 10**12, 10**23, 10**400),
    *(0.0, -0.0, 0.5, 1.5, -1e-9, 1e-320, 1e38, 1e39, 1e308, -1e308),
    *(math.nan, math.inf, -math.inf),
)
STRINGS = (
    *("", " ", "\0", "a\0b", "nan", "Infinity", "1", "0.1", "null", "[]", "true"),
    *("../../etc/passwd", "/dev/zero", "~", "a\nb", "\r", "\u202etxt", "\ud800"),
    *("é\u0300" * 9, "🙂", "%s%n{0}", "{{ 1/0 }}", "<script>x</script>", "\x1b[2J"),
    *("x" * 300, "y" * 100_000, "1e400", "float8", "$HOME", "__class__"),
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": [1]}}, [{}])


def value(random: Random) -> Any:
    """Draws a hostile JSON value."""
    return copy.deepcopy(random.choice(random.choice((NUMBERS, STRINGS, OTHERS))))


def shown(found: object) -> str:
    """Shortens a value for the words of a mutation."""
    try:
        text = ascii(found)
    except ValueError:  # an integer of too many digits
        text = "10**400"
    return text if len(text) < 40 else f"{text[:30]}… of {len(text)}"


def text_of(tree: Any) -> str:
    """Writes JSON; integers of any length, NaN and Infinity too."""
    return json.dumps(tree, allow_nan=True)


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """Lists the paths of all nodes below the root."""
    found = []
    items = tree.items() if isinstance(tree, dict) else ()
    items = enumerate(tree) if isinstance(tree, list) else items
    for key, child in items:
        found += [(*path, key), *places(child, (*path, key))]
    return found


def at(tree: Any, path: tuple) -> Any:
    """Returns the node at a path."""
    for key in path:
        tree = tree[key]
    return tree


def change(random: Random, tree: Any, where: list[tuple] | None = None) -> str:
    """Changes one node of a tree in place.

    Args:
      random: of the mutation.
      tree: a dict or a list.
      where: the paths to choose from; None = all.
    """
    paths = where or places(tree)
    if not paths:
        return "nothing"
    path = random.choice(paths)
    parent, key = at(tree, path[:-1]), path[-1]
    how = random.choice(("value", "value", "value", "scale", "type", "delete", "wrap"))
    old, named = parent[key], "/".join(map(str, path))
    number = isinstance(old, int | float) and not isinstance(old, bool)
    if how == "scale" and number:
        factor = random.choice((-1, 0, 2, 10, 10**4, 10**9, 10**13, 0.5, 1e-9))
        parent[key] = old * factor
    elif how == "type":
        turned = {str: [old], list: {"0": old}, dict: [old]}
        parent[key] = turned.get(type(old), str(old))
    elif how == "delete":
        del parent[key]
        return f"{named} is gone"
    elif how == "wrap":
        parent[key] = [old]
    else:
        parent[key] = value(random)
    return f"{named} = {shown(parent[key])}"


def nested(random: Random) -> str:
    """Writes JSON that nests deeply."""
    depth = random.choice((200, 2_000, 100_000))
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    return opening * depth + "1" + closing * depth


def doubled(random: Random, tree: dict) -> str:
    """Writes an object one of whose keys stands twice."""
    key = random.choice(list(tree))
    return f"{{{json.dumps(key)}: {text_of(value(random))}, {text_of(tree)[1:]}"


def tampered(random: Random, data: bytes) -> tuple[bytes, str]:
    """Damages bytes."""
    at_byte = random.randrange(max(len(data), 1))
    bit = 1 << random.randrange(8)
    flipped = bytearray(data or b"\0")
    flipped[at_byte] ^= bit
    junk = random.randbytes(40)
    ways = {
        f"cut to {at_byte} bytes": data[:at_byte],
        f"bit {bit} of byte {at_byte} flipped": bytes(flipped),
        "empty": b"",
        "blank": b" \n\t\n",
        f"40 bytes at {at_byte} replaced": data[:at_byte] + junk + data[at_byte + 40 :],
        "garbage behind the end": data + junk,
        "a NUL byte inside": data[:at_byte] + b"\0" + data[at_byte:],
        "bytes that are not UTF-8": data[:at_byte] + b"\xff\xfe" + data[at_byte:],
        "UTF-16": data.decode(errors="replace").encode("utf-16"),
        "a web page": b"<!DOCTYPE html><html></html>",
        "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "twice": data * 2,
        "a piece doubled": data[:at_byte] + data[at_byte // 2 :],
    }
    what = random.choice(list(ways))
    return ways[what], what


def replace(random: Random, path: Path) -> str:
    """Puts something else in the place of a file: no file, or one without end."""
    path.unlink(missing_ok=True)
    ways = ("gone", "a folder", "a link to itself", "a pipe", "sparse", "a device")
    what = random.choice(ways)
    if what == "a folder":
        path.mkdir()
    elif what == "a link to itself":
        path.symlink_to(path.name)
    elif what == "a pipe":
        os.mkfifo(path)
    elif what == "a device":
        path.symlink_to("/dev/zero")
    elif what == "sparse":
        with path.open("wb") as file:
            file.truncate(6 * 2**30)
        what = "6 GiB of zeros"
    return what


def damage(random: Random, path: Path) -> str:
    """Damages a file or replaces it."""
    if random.random() < 0.25:
        return f"{path.name} is {replace(random, path)}"
    data, what = tampered(random, path.read_bytes())
    path.write_bytes(data)
    return f"{path.name}: {what}"


def rewrite(random: Random, path: Path) -> str:
    """Changes a JSON file: a node, two, its nesting, a doubled key, or its bytes."""
    how = random.random()
    if how < 0.15:
        return damage(random, path)
    tree = json.loads(path.read_bytes())
    if how < 0.2:
        path.write_text(nested(random))
        return f"{path.name} nests deeply"
    if how < 0.25 and isinstance(tree, dict) and tree:
        path.write_text(doubled(random, tree))
        return f"{path.name} has a key twice"
    if how < 0.3:
        root = value(random)
        path.write_text(text_of(root))
        return f"{path.name} is {shown(root)}"
    what = change(random, tree)
    if how > 0.85 and places(tree):
        what += f", {change(random, tree)}"
    path.write_text(text_of(tree))
    return f"{path.name}: {what}"
