"""Row J11: multipart forms, read in any pieces, within bounds, and never passed on as they came."""

import random
import tracemalloc

import pytest

from proxy import forms
from proxy.dialects import transcriptions
from proxy.errors import BadRequest, Refusal, TooLarge
from proxy.forms import FormReader

TYPE = b"multipart/form-data; boundary=abc"


def part(name, value=b"x", *, more=b"", disposition=None):
    head = disposition or b'form-data; name="%b"' % name
    return b"--abc\r\nContent-Disposition: %b\r\n%b\r\n%b\r\n" % (head, more, value)


def whole(*parts):
    return b"".join(parts) + b"--abc--\r\n"


FILE = part(b"file", b"RIFF\r\n--ab\x00\xff\r\n--abcd", disposition=b'form-data; name="file"; filename="a.wav"')
GOOD = whole(part(b"model", b"whisper"), FILE, part(b"language", "dé".encode()))


def read(body, content_type=TYPE, sizes=(1 << 20,)):
    reader = FormReader(content_type, "file")
    at, number = 0, 0
    while at < len(body):
        size = sizes[number % len(sizes)]
        reader.feed(body[at : at + size])
        at, number = at + size, number + 1
    return reader.form


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 60, 1000])
def test_j11_a_form_is_read_in_pieces_of_any_size(size):
    form = read(GOOD, sizes=(size,))
    assert form.fields == {"model": "whisper", "language": "dé"}
    assert form.file == b"RIFF\r\n--ab\x00\xff\r\n--abcd"


@pytest.mark.parametrize(
    "kind",
    [
        *(b"", b"application/json", b"multipart/mixed; boundary=abc", b"multipart/form-data", b"multipart/form-data;"),
        *(
            b"multipart/form-data; boundary=",
            b'multipart/form-data; boundary=""',
            b"multipart/form-data; boundary=\xff",
        ),
        b"multipart/form-data; boundary=" + b"a" * 71,
        *(b"multipart/form-data; boundary=abc; boundary=abd", b"multipart/form-data; boundary=abc; BOUNDARY=abd"),
        *(b"multipart/form-data; boundary*=utf-8''abc", b"multipart/form-data; boundary=a\r\nb"),
        b'multipart/form-data; boundary="a\x00b"',
    ],
)
def test_j11_a_type_without_one_plain_boundary_is_refused(kind):
    with pytest.raises(BadRequest):
        FormReader(kind, "file")


BAD = {
    "no end": GOOD[:-8],
    "cut in a part": GOOD[:60],
    "another boundary": GOOD.replace(b"--abc", b"--abd"),
    "bare line feeds": GOOD.replace(b"\r\n", b"\n"),
    "nothing": b"",
    "junk": b"junk" * 50,
    "a preamble": b"hello\r\n" + GOOD,
    "no disposition": whole(b"--abc\r\nContent-Type: x\r\n\r\nx\r\n"),
    "no name": whole(part(b"", disposition=b"form-data")),
    "an empty name": whole(part(b"")),
    "an attachment": whole(part(b"x", disposition=b'attachment; name="model"')),
    "the model twice": whole(part(b"model", b"a"), part(b"model", b"b"), FILE),
    "the file twice": whole(part(b"model", b"a"), FILE, FILE),
    "a field as a file, twice": whole(part(b"model"), part(b"x", disposition=b'form-data; name="model"; filename="m"')),
    "a header twice": whole(part(b"model", more=b'Content-Disposition: form-data; name="file"\r\n')),
    "base64": whole(part(b"model", more=b"Content-Transfer-Encoding: base64\r\n")),
    "quoted-printable": whole(part(b"model", more=b"Content-Transfer-Encoding: Quoted-Printable\r\n")),
    "many parts": whole(*(part(b"f%d" % number) for number in range(forms.MAX_PARTS + 1))),
    "thousands of parts": whole(*(part(b"f%d" % number) for number in range(5000))),
    "many headers": whole(part(b"model", more=b"".join(b"x-%d: y\r\n" % n for n in range(forms.MAX_HEADERS)))),
    "a long header": whole(part(b"model", more=b"x: %b\r\n" % (b"y" * (forms.MAX_HEADER + 1)))),
    "a long name of a header": whole(part(b"model", more=b"%b: y\r\n" % (b"x" * (forms.MAX_HEADER + 1)))),
    "a header without a colon": whole(part(b"model", more=b"junk\r\n")),
    "not UTF-8": whole(part(b"model", b"\xff"), FILE),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("size", [1 << 20, 13])
def test_j11_tricks_are_400(name, size):
    with pytest.raises(BadRequest):
        read(BAD[name], sizes=(size,))


def test_j11_what_is_too_large_is_413_as_soon_as_it_is():
    with pytest.raises(TooLarge, match="'prompt'"):
        read(whole(part(b"prompt", b"x" * (forms.MAX_FIELD + 1))))
    reader = FormReader(TYPE, "file")
    reader.feed(FILE[:-2])
    with pytest.raises(TooLarge):
        for _ in range(30):
            reader.feed(bytes(1 << 20))
    reader = FormReader(TYPE, "file")
    with pytest.raises(Refusal):
        for _ in range(1000):
            reader.feed(b"\r\n" * (1 << 19))  # a preamble without end


def test_j11_a_file_of_the_permitted_size_passes():
    body = whole(part(b"model"), part(b"file", bytes(forms.MAX_FILE)))
    tracemalloc.start()
    form = read(body, sizes=(64 << 10,))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(form.file) == forms.MAX_FILE
    print(f"{peak >> 20} MiB for a file of {forms.MAX_FILE >> 20}")
    assert peak < 4 * forms.MAX_FILE


def test_j11_what_follows_the_end_says_nothing():
    assert read(GOOD + b'--abc\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n--abc--').fields[
        "model"
    ] == ("whisper")


def test_j11_mangled_forms_are_read_or_refused_and_nothing_else():
    rng = random.Random("forms")
    read_ones = 0
    for _ in range(5000):
        body = bytearray(GOOD)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body))
            kind = rng.random()
            if kind < 0.4:
                body[at : at + rng.randint(0, 3)] = rng.choice(
                    (b"\r", b"\n", b"--", b'"', b":", b"\x00", b"--abc", b"\r\n--abc\r\n", b"\xff", b";")
                )
            elif kind < 0.7:
                del body[at : at + rng.randint(1, 9)]
            else:
                body[at:at] = body[rng.randrange(len(body)) :][: rng.randint(1, 80)]
        sizes = [rng.randint(1, 99) for _ in range(3)]
        try:
            form = read(bytes(body), sizes=sizes)
        except Refusal:
            continue
        assert form == read(bytes(body)), bytes(body)
        read_ones += 1
    print(f"{read_ones} of 5000 mangled forms were still forms")
    assert 100 < read_ones < 4900


# What goes on


def request_of(**fields):
    return transcriptions.read(forms.Form({"model": "m", **fields}, b"RIFF"))


def test_j11_only_what_ollama_looks_at_goes_on():
    request = request_of(language="de", prompt="p", response_format="text", temperature="0", api_base="x", Model="y")
    kind, body = transcriptions.written(request)
    form = read(body, kind)
    assert form.file == b"RIFF"
    assert form.fields == {"model": "m", "language": "de", "prompt": "p", "response_format": "text"}


def test_j11_boundaries_are_new_each_time_and_what_is_within_stays_within():
    request = request_of(prompt='x\r\n--abc\r\nContent-Disposition: form-data; name="model"\r\n\r\nother')
    (kind, body), (other, _) = transcriptions.written(request), transcriptions.written(request)
    assert kind != other
    assert read(body, kind).fields == {"model": "m", "prompt": request["prompt"]}


@pytest.mark.parametrize(("file", "text"), [(None, '"file" is required'), (b"", "audio file is empty")])
def test_a_form_without_sound_is_refused(file, text):
    with pytest.raises(BadRequest, match=text):
        transcriptions.read(forms.Form({"model": "m"}, file))


def test_u3_sound_is_weighed_by_its_bytes():
    request = {"model": "m", "prompt": "x" * 40, "file": bytes(64_000)}
    assert transcriptions.weigh(request, 10**6) == 40 + 4 * 100
