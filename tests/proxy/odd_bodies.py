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


# The dialects of others

TEXTS = ['"hi"', '"hi"', '"a\\u0000b"', '""', "null", "1", "[]"]
NUMBERS = ["1", "0.5", "null", '"1"', "-1", "1e300", "true", "[1]", "9007199254740993", "1e20", "2.0"]


def a_list(rng: random.Random, item, longest: int = 2, shortest: int = 0) -> str:
    return "[" + ",".join(item(rng) for _ in range(rng.randint(shortest, longest))) + "]"


def some_turns(rng: random.Random) -> str:
    return a_list(rng, a_turn, shortest=rng.random() < 0.9)


def some_parts(rng: random.Random) -> str:
    def part(rng: random.Random) -> str:
        kind = rng.choice(('"text"', '"input_text"', '"image_url"', '"tool_result"', "null", "1"))
        return an_object(rng, [("type", kind), ("text", rng.choice(TEXTS))])

    return rng.choice((a_list(rng, part), *TEXTS[:4], '["x"]', "{}"))


def a_turn(rng: random.Random) -> str:
    role = rng.choice(('"user"', '"user"', '"user"', '"assistant"', '"system"', "1"))
    members = [("role", role), ("content", rng.choice((TEXTS[0], some_parts(rng))))]
    if rng.random() < 0.2:
        arguments = rng.choice(('"{}"', "{}", "null"))
        function = an_object(rng, [("name", '"f"'), ("arguments", arguments)])
        members.append(("tool_calls", f"[{an_object(rng, [('id', TEXTS[0]), ('function', function)])}]"))
    return an_object(rng, members)


def a_tool(rng: random.Random, depth: int = 0) -> str:
    kinds = ('"function"', '"web_search"', '"web_search_20250305"', '"Web_Search"', '"namespace"', "null", "2")
    members = [("type", rng.choice(kinds)), ("name", '"f"')]
    if rng.random() < 0.3:
        members.append(("function", an_object(rng, [("name", '"f"'), ("parameters", rng.choice(OTHERS))])))
    if rng.random() < 0.3 and depth < 3:
        members.append(("tools", a_list(rng, lambda rng: a_tool(rng, depth + 1))))
    return an_object(rng, members)


def of_one(name: str, values: list[str]):
    return lambda rng: rng.choice((an_object(rng, [(name, rng.choice(values))]), "null", "{}", "1"))


def numbers(rng: random.Random) -> str:
    return rng.choice(NUMBERS)


def texts(rng: random.Random) -> str:
    return rng.choice(TEXTS)


def others(rng: random.Random) -> str:
    return rng.choice(OTHERS)


SAMPLING = dict.fromkeys(("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "top_k"), numbers)
NATIVE = {"keep_alive": others, "options": some_options, "num_ctx": numbers, "shift": others, "think": others}
STEERING = dict.fromkeys(
    ("user", "metadata", "store", "api_base", "n", "best_of", "name", "backend", "made_up"), others
)
ANYWHERE = {**SAMPLING, **NATIVE, **STEERING, "stop": lambda rng: rng.choice(('"x"', '["x"]', "null", "1", "[1]"))}
TOOLS = {"tools": lambda rng: a_list(rng, a_tool)}
STREAMED = {"stream_options": of_one("include_usage", ["true", "false", "null", "1"])}
# path → (what it must have, the fields of its cap, what it may have)
DIALECTS = {
    "/v1/chat/completions": (
        {"messages": some_turns},
        ("max_tokens", "max_completion_tokens"),
        {
            **ANYWHERE,
            **STREAMED,
            **TOOLS,
            "reasoning": of_one("effort", TEXTS),
            "reasoning_effort": texts,
            "response_format": of_one("type", TEXTS),
            "logprobs": others,
            "top_logprobs": numbers,
            "_debug_render_only": others,
        },
    ),
    "/v1/completions": (
        {"prompt": texts},
        ("max_tokens", "max_completion_tokens"),
        {**ANYWHERE, **STREAMED, "suffix": texts, "logprobs": numbers, "_debug_render_only": others},
    ),
    "/v1/embeddings": (
        {"input": lambda rng: rng.choice((*TEXTS, '["a","b"]', "[1]", '["a",1]'))},
        (),
        {**ANYWHERE, "dimensions": numbers, "encoding_format": lambda rng: rng.choice(('"float"', '"BASE64"', '"x"'))},
    ),
    "/v1/responses": (
        {"input": lambda rng: rng.choice((texts(rng), a_list(rng, a_turn)))},
        ("max_output_tokens",),
        {
            **ANYWHERE,
            **TOOLS,
            "instructions": texts,
            "reasoning": of_one("effort", TEXTS),
            "text": of_one("format", OTHERS),
            "truncation": texts,
            "previous_response_id": texts,
        },
    ),
    "/v1/messages": (
        {"messages": some_turns},
        ("max_tokens", "max_tokens"),
        {
            **ANYWHERE,
            **TOOLS,
            "system": some_parts,
            "stop_sequences": others,
            "thinking": of_one("type", TEXTS),
            "output_config": of_one("effort", TEXTS),
            "tool_choice": of_one("type", TEXTS),
        },
    ),
}


def odd_body(rng: random.Random, path: str) -> bytes:
    """The body of one call of a path."""
    if path == "/api/chat":
        return odd_chat(rng)
    needed, caps, possible = DIALECTS[path]
    likely = rng.random() < 0.7
    members = [("model", MODELS[0] if likely else rng.choice(MODELS))]
    members += [(name, make(rng)) for name, make in needed.items()]
    members += [(name, rng.choice(CAPS[:2] if likely else CAPS)) for name in caps if rng.random() < 0.6]
    if rng.random() < 0.7:
        members.append(("stream", rng.choice(SWITCHES[:3] if likely else SWITCHES)))
    members += [(name, possible[name](rng)) for name in rng.sample(sorted(possible), rng.randint(0, 3))]
    text = an_object(rng, members)
    end = rng.random()
    if end < 0.02:
        text += rng.choice(("{}", " x", "\x00", ",", "]"))
    elif end < 0.03:
        text = text[: rng.randrange(len(text))]
    return text.encode("utf-8", "surrogatepass")
