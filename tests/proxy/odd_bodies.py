"""Bodies that a careless gateway and Go's decoder would read differently, made from a seeded source of chance."""

import json
import random

LONG_S, KELVIN = "\u017f", "\u212a"
MODELS = ['"llama3.2"', '"other"', '""', "null", "7", '["llama3.2"]', '{"name":"llama3.2"}']
SWITCHES = ["true", "false", "null", '"false"', "0"]
CAPS = ["5", "9", "0", "-1", "-2", "1000000000", "3.0", "7", "null", "3.5", '"9"', "null", "9223372036854775808", "[1]"]
OTHERS = ['"x"', "1", "true", "null", "{}", "[]", '{"a":[1]}']


def spelled(rng: random.Random, name: str) -> str:
    """A spelling of a field name: as it is, in another case, with letters that fold to it, or just a neighbour."""
    kind = rng.random()
    if kind < 0.8:
        return name
    if kind < 0.9:
        return "".join(rng.choice((char.upper(), char)) for char in name)
    if kind < 0.97:
        return name.replace("s", LONG_S).replace("k", KELVIN)
    return rng.choice((name + " ", " " + name, name + "\u0000", name[:-1], "ı" + name))


def quoted(rng: random.Random, key: str) -> str:
    """The key as a JSON string, now and then with an escape where none is needed."""
    if rng.random() < 0.2:
        return '"' + "".join(f"\\u{ord(char):04x}" for char in key) + '"'
    return json.dumps(key, ensure_ascii=rng.random() < 0.5)


def an_object(rng: random.Random, members: list[tuple[str, str]]) -> str:
    """Members in any order, some of them twice."""
    if rng.random() < 0.3:
        members = [*members, *rng.sample(members, min(rng.randint(1, 2), len(members)))]
    rng.shuffle(members)
    blank = rng.choice(("", "", " ", "\n\t"))
    return "{" + ",".join(f"{blank}{quoted(rng, spelled(rng, key))}{blank}:{value}" for key, value in members) + "}"


def some_options(rng: random.Random) -> str:
    members = [("num_predict", rng.choice(CAPS))]
    for name in rng.sample(("num_ctx", "seed", "top_k", "num_gpu", "num_keep", "made_up"), rng.randint(0, 3)):
        members.append((name, rng.choice(("1", "8", "4096", "null", "2.0"))))
    return rng.choice((an_object(rng, members), an_object(rng, members), an_object(rng, members), "null", "[]"))


def a_message(rng: random.Random) -> str:
    return an_object(rng, [("role", '"user"'), ("content", rng.choice(('"hi"', '"a\\u0000b"', "null", "1")))])


def odd_chat(rng: random.Random) -> bytes:
    """The body of one /api/chat."""
    likely = rng.random() < 0.7
    members = [
        ("model", MODELS[0] if likely else rng.choice(MODELS)),
        ("messages", f"[{a_message(rng)}]" if likely else rng.choice((f"[{a_message(rng)}]", "[]", "null", "[1]"))),
    ]
    if rng.random() < 0.8:
        members.append(("stream", rng.choice(SWITCHES[:3] if likely else SWITCHES)))
    if rng.random() < 0.8:
        members.append(("options", some_options(rng)))
    for name in rng.sample(("keep_alive", "shift", "think", "format", "name", "Extra", "truncate"), rng.randint(0, 2)):
        members.append((name, rng.choice(OTHERS)))
    text = an_object(rng, members)
    end = rng.random()
    if end < 0.03:
        text += rng.choice(("{}", " x", "\x00", ",", "]"))
    elif end < 0.05:
        text = text[: rng.randrange(len(text))]
    elif end < 0.06:
        text = "\ufeff" + text
    return text.encode("utf-8", "surrogatepass")
