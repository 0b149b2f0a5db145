"""What a fuzzer does to bytes and to JSON, from a seed."""

import copy

INFINITY = float("inf")
NASTY = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, INFINITY, INFINITY * 0,
    "", "\0", "../../etc/passwd", "/etc/passwd", "é" * 50, "x" * 5000, "%s%n{0}", "\u202e", "FP32", "float32",
    [], [[]], [0] * 100, {}, {"": None},
]  # fmt: skip
FILL = (b"\xff", b"\0", b"\x7f\xff\xff\xff", b"{", b"[", b'"')


def mutated_bytes(draw, content, others=()):
    """Flips, drops, repeats, inserts or splices a few bytes; `draw` is a `random.Random`."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5, 20))):
        start = draw.randrange(len(found) + 1)
        end = min(len(found), start + draw.choice((1, 2, 4, 16, 256)))
        match draw.randrange(7):
            case 0 if found and start < len(found):
                found[start] ^= 1 << draw.randrange(8)
            case 1:
                del found[start:end]
            case 2:
                found[start:start] = found[start:end] * draw.choice((1, 2, 50))
            case 3:
                found[start:start] = draw.randbytes(draw.choice((1, 4, 64)))
            case 4:
                del found[start:]
            case 5:
                found[start:end] = draw.choice(
                    (b"\xff", b"\0", b"\x7f\xff\xff\xff", b"{", b"[", b'"')
                ) * draw.choice((1, 9))
            case 6 if others:
                other = draw.choice(others)
                at = draw.randrange(len(other) + 1)
                found[start:end] = other[at : at + draw.choice((8, 64, 1024))]
    return bytes(found)


def mutated_json(draw, value):
    """Replaces, drops, adds or exchanges a few values anywhere in a JSON value."""
    found = copy.deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = list(_places(found))
        if not places:
            return draw.choice(NASTY)
        holder, key = draw.choice(places)
        match draw.randrange(5):
            case 0 | 1:
                holder[key] = copy.deepcopy(draw.choice(NASTY))
            case 2:
                del holder[key]
            case 3:
                other, there = draw.choice(places)
                holder[key] = copy.deepcopy(other[there])
            case 4 if isinstance(holder, list):
                holder.insert(draw.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
            case 4:
                holder[draw.choice(("extra", "", "data", f"{key} "))] = copy.deepcopy(draw.choice(NASTY))
    return found


def _places(value):
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = list(range(min(len(value), 20)))
    else:
        return
    for key in keys:
        yield value, key
        yield from _places(value[key])
