"""Requests whose sound is none, lies, asks for too much or is somewhere else."""

import base64
import random
from functools import cache

from benchmarks.security import audio_files as files
from benchmarks.security.attack_kinds import (
    BOUNDARY,
    MODEL,
    AttackInputs,
    AttackKinds,
    AttackRequest,
    attack_with_audio,
    attack_with_message,
    build_audio_part,
    build_chat_request,
    build_form,
    build_post,
    build_transcription_request,
    build_user_message,
)

KINDS = AttackKinds()
_MAGIC = (b"", b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS", b"ID3\4", b"\x1a\x45\xdf\xa3", b"\0\0\0\x18ftypM4A ")


@cache
def build_bomb(name: str) -> bytes:
    """One of the files that ask for too much; some take a while to make."""
    return files.BOMBS[name]()


@KINDS.add("random bytes as sound")
def _random_bytes(draw: random.Random, world: AttackInputs) -> AttackRequest:
    data = draw.choice(_MAGIC) + draw.randbytes(draw.choice((0, 1, 12, 500, 60_000)))
    return attack_with_audio(data, draw.choice(("wav", "mp3", "flac", "ogg", "webm", "m4a")))


@KINDS.add("headers that lie")
def _lying(draw: random.Random, world: AttackInputs) -> AttackRequest:
    return attack_with_audio(files.build_lying_wav(draw, draw.randbytes(draw.choice((0, 3, 4000)))))


@KINDS.add("files cut short")
def _cut(draw: random.Random, world: AttackInputs) -> AttackRequest:
    data = world.sounds[draw.choice(sorted(world.sounds))]
    return attack_with_audio(data[: draw.randrange(1, len(data) // 2)])


@KINDS.add("damaged files")
def _damaged(draw: random.Random, world: AttackInputs) -> AttackRequest:
    made = attack_with_audio(files.damage(draw, world.sounds[draw.choice(sorted(world.sounds))]))
    return AttackRequest(sends=made.sends, may_be_answered=True)


@KINDS.add("files that ask for too much", most=4 * len(files.BOMBS))
def _too_much(draw: random.Random, world: AttackInputs) -> AttackRequest:
    return attack_with_audio(build_bomb(draw.choice(sorted(files.BOMBS))))


@KINDS.add("sound that is elsewhere")
def _elsewhere(draw: random.Random, world: AttackInputs) -> AttackRequest:
    return attack_with_audio(draw.choice(files.build_references(world.marker, world.trap)))


@KINDS.add("a path or an address for a sound")
def _path(draw: random.Random, world: AttackInputs) -> AttackRequest:
    place = draw.choice(
        (world.marker, f"file://{world.marker}", world.trap, "/etc/passwd", "/dev/zero", "-", "0")
    )
    given = draw.choice(
        (
            {"type": "input_audio", "input_audio": {"data": place, "format": "wav"}},
            {"type": "input_audio", "input_audio": {"url": place, "format": "wav"}},
            {"type": "audio", "audio": place},
            {"type": "audio_url", "audio_url": {"url": place}},
            {"type": "image_url", "image_url": {"url": place}},
            {"type": "file", "file": {"file_id": place}},
            {"type": "prompt_embeds", "prompt_embeds": place},
        )
    )
    return attack_with_message(build_user_message(given))


@KINDS.add("base64 with something else in it")
def _junk(draw: random.Random, world: AttackInputs) -> AttackRequest:
    text = base64.b64encode(world.sounds["wav"]).decode()
    place = draw.randrange(len(text) - 4)
    bad = draw.choice(("\n", "=", " ", "é", "\ud800", "-_", "\0", "data:audio/wav;base64,"))
    data = draw.choice((text[:place] + bad + text[place:], text[: place | 1], bad + text, "===="))
    return attack_with_message(
        build_user_message({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    )


@KINDS.add("huge base64", most=4)
def _huge(draw: random.Random, world: AttackInputs) -> AttackRequest:
    head, tail = (
        build_chat_request(messages=[build_user_message(build_audio_part(b"\0" * 3))])
        .partition(b"\r\n\r\n")[2]
        .split(b"AAAA")
    )
    body = head + b"A" * draw.choice((48_000_000, 100_000_000)) + tail
    return AttackRequest(sends=(build_post(body),), may_be_dropped=True)


@KINDS.add("sounds without number", most=20)
def _many(draw: random.Random, world: AttackInputs) -> AttackRequest:
    crumb = build_audio_part(files.build_wav(b"\1\2" * 50))
    n = draw.choice((300, 1000, 1001, 20_000))
    turns = [build_user_message(*[crumb] * 30), {"role": "assistant", "content": "a"}] * (n // 30)
    messages = draw.choice(([], turns)) or [build_user_message(*[crumb] * n)]
    return AttackRequest(
        sends=(build_chat_request(messages=[*messages, build_user_message(crumb)]),), may_be_dropped=True
    )


@KINDS.add("sounds of somebody else's")
def _roles(draw: random.Random, world: AttackInputs) -> AttackRequest:
    role = draw.choice(("system", "developer", "assistant", "tool", "function", "", "USER", None, 7))
    return attack_with_message({"role": role, "content": [build_audio_part(world.sounds["flac"], "flac")]})


@KINDS.add("a format that is none")
def _format(draw: random.Random, world: AttackInputs) -> AttackRequest:
    given = draw.choice(
        ("raw", "", "WAV", None, 7, ["wav"], {}, "../wav", "wav\0", "hls", "concat", "x" * 100_000)
    )
    return attack_with_audio(world.sounds["wav"], given)


# Forms

_FIELD = ('name="model"', MODEL.encode())


@KINDS.add("transcripts of no sound")
def _no_sound(draw: random.Random, world: AttackInputs) -> AttackRequest:
    elsewhere = draw.choice(files.build_references(world.marker, world.trap))
    data = draw.choice((draw.randbytes(3000), b"", world.sounds["ogg"][:2000], elsewhere))
    return AttackRequest(
        sends=(build_transcription_request(build_form(('name="file"; filename="a.mp3"', data), _FIELD)),)
    )


@KINDS.add("forms with too much")
def _forms(draw: random.Random, world: AttackInputs) -> AttackRequest:
    more = draw.choice(
        (
            [('name="x"', b"y")] * 5000, [('name="file"; filename="b"', b"x")] * 2000, [("name=" + "x" * 9000, b"")],
            [('filename="a"', b"x")], [("", b"x")], [('name="model"', b"x")], [('name="response_format"', b"srt\xff")],
            [('name="prompt"', b"x" * 2_000_000)], [('name="temperature"', b"1e999")], [('name="\\ud800"', b"x")],
            [('name="model"; filename="m"', MODEL.encode())], [('name="stream"', b"true")],
            [("name*=utf-8''%FF", b"x")], [("name=a\r\nX: " + "x" * 4_000_000, b"")],
            [("name=a" + "\r\nX: y" * 9999, b"")],
        )
    )  # fmt: skip
    file = ('name="file"; filename="a.wav"', world.sounds["wav"])
    return AttackRequest(
        sends=(build_transcription_request(build_form(file, _FIELD, *more)),), may_be_dropped=True
    )


@KINDS.add("file names with paths")
def _names(draw: random.Random, world: AttackInputs) -> AttackRequest:
    name = draw.choice((world.marker, "../../etc/passwd", "C:\\x", "\0", "a" * 5000, world.trap, "é"))
    return AttackRequest(
        sends=(
            build_transcription_request(build_form((f'name="file"; filename="{name}"', b"no sound"), _FIELD)),
        )
    )


@KINDS.add("forms that are none")
def _no_forms(draw: random.Random, world: AttackInputs) -> AttackRequest:
    whole = build_form(('name="file"; filename="a"', b"x"), ('name="model"', b"x" * 500_000))
    charset = draw.choice(
        ("idna", "punycode", "zlib", "undefined", "rot13", "unicode_escape", "utf-7", "x" * 500)
    )
    boundary = draw.choice(("", "=", "=" + "x" * 999, "=another", '="\\"', f"={BOUNDARY}; charset={charset}"))
    body = draw.choice(
        (whole, whole[:-8], b"", b"--", whole * 2, b"x" * 50_000, whole.replace(b"\r\n", b"\n"), whole[20:])
    )
    return AttackRequest(
        sends=(build_transcription_request(body, f"multipart/form-data; boundary{boundary}"),),
        may_be_dropped=True,
    )


@KINDS.add("forms that announce a gigabyte")
def _gigabyte(draw: random.Random, world: AttackInputs) -> AttackRequest:
    whole = build_transcription_request(build_form(('name="file"; filename="a"', b"x" * 1000), end=b""))
    length = f"Content-Length: {draw.choice((1 << 30, 1 << 33))}\r\n".encode()
    head, rest = whole.split(b"Content-Length: ", 1)
    return AttackRequest(sends=(head + length + rest.partition(b"\r\n")[2],), may_be_dropped=True)
