"""Requests whose sound is invalid, lies, asks for too much or is in another file."""

import base64
import random
from functools import cache

from benchmarks.security import audio_bombs, audio_files
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
    """Builds a file that asks for too much, only once: some take long."""
    return audio_bombs.BOMBS[name]()


@KINDS.add("random bytes as sound")
def _draw_random_bytes(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    data = draw.choice(_MAGIC) + draw.randbytes(draw.choice((0, 1, 12, 500, 60_000)))
    return attack_with_audio(data, draw.choice(("wav", "mp3", "flac", "ogg", "webm", "m4a")))


@KINDS.add("lying headers")
def _draw_lying_header(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    attack = attack_with_audio(audio_files.build_lying_wav(draw, draw.randbytes(draw.choice((0, 3, 4000)))))
    return AttackRequest(sends=attack.sends, may_be_answered=True)  # a size that is too large is forgiven


@KINDS.add("truncated files")
def _draw_truncated(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    data = inputs.sounds[draw.choice(sorted(inputs.sounds))]
    return attack_with_audio(data[: draw.randrange(1, len(data) // 2)])


@KINDS.add("damaged files")
def _draw_damaged(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    attack = attack_with_audio(audio_files.damage(draw, inputs.sounds[draw.choice(sorted(inputs.sounds))]))
    return AttackRequest(sends=attack.sends, may_be_answered=True)


@KINDS.add("files that ask for too much", max_requests=4 * len(audio_bombs.BOMBS))
def _draw_bomb(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    return attack_with_audio(build_bomb(draw.choice(sorted(audio_bombs.BOMBS))))


@KINDS.add("references to other files")
def _draw_reference(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    return attack_with_audio(draw.choice(audio_bombs.build_references(inputs.marker, inputs.trap)))


@KINDS.add("paths and addresses in place of sound")
def _draw_path(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    location = draw.choice(
        (inputs.marker, f"file://{inputs.marker}", inputs.trap, "/etc/passwd", "/dev/zero", "-", "0")
    )
    value = draw.choice(
        (
            {"type": "input_audio", "input_audio": {"data": location, "format": "wav"}},
            {"type": "input_audio", "input_audio": {"url": location, "format": "wav"}},
            {"type": "audio", "audio": location},
            {"type": "audio_url", "audio_url": {"url": location}},
            {"type": "image_url", "image_url": {"url": location}},
            {"type": "file", "file": {"file_id": location}},
            {"type": "prompt_embeds", "prompt_embeds": location},
        )
    )
    return attack_with_message(build_user_message(value))


@KINDS.add("broken base64")
def _draw_broken_base64(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    text = base64.b64encode(inputs.sounds["wav"]).decode()
    location = draw.randrange(len(text) - 4)
    bad = draw.choice(("\n", "=", " ", "é", "\ud800", "-_", "\0", "data:audio/wav;base64,"))
    data = draw.choice((text[:location] + bad + text[location:], text[: location | 1], bad + text, "===="))
    message = build_user_message({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    return AttackRequest(
        sends=(build_chat_request(messages=[message]),), may_be_answered=True
    )  # line breaks and missing padding are read


@KINDS.add("huge base64", max_requests=4)
def _draw_huge_base64(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    head, tail = (
        build_chat_request(messages=[build_user_message(build_audio_part(b"\0" * 3))])
        .partition(b"\r\n\r\n")[2]
        .split(b"AAAA")
    )
    body = head + b"A" * draw.choice((48_000_000, 100_000_000)) + tail
    return AttackRequest(sends=(build_post(body),), may_be_dropped=True)


@KINDS.add("too many sounds", max_requests=20)
def _draw_many_sounds(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    crumb = build_audio_part(audio_files.build_wav(bytes(range(256)) * 13))
    n = draw.choice((300, 1000, 1001, 20_000))
    turns = [build_user_message(*[crumb] * 30), {"role": "assistant", "content": "a"}] * (n // 30)
    messages = draw.choice(([], turns)) or [build_user_message(*[crumb] * n)]
    return AttackRequest(
        sends=(build_chat_request(messages=[*messages, build_user_message(crumb)]),), may_be_dropped=True
    )


@KINDS.add("sounds of other roles")
def _draw_role(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    role = draw.choice(("system", "developer", "assistant", "tool", "function", "", "USER", None, 7))
    return attack_with_message({"role": role, "content": [build_audio_part(inputs.sounds["flac"], "flac")]})


@KINDS.add("labels of other formats")
def _draw_unknown_format(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    label = draw.choice(("pcm16", "exe", "../../etc/passwd", "wav\0", 7, None, [], "wav" * 1000))
    message = build_user_message(build_audio_part(inputs.sounds["wav"], label))
    return AttackRequest(
        sends=(build_chat_request(messages=[message]),), may_be_answered=True
    )  # the content says what it is


# Forms

_FIELD = ('name="model"', MODEL.encode())


@KINDS.add("transcription of invalid files")
def _draw_invalid_transcription(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    elsewhere = draw.choice(audio_bombs.build_references(inputs.marker, inputs.trap))
    data = draw.choice((draw.randbytes(3000), b"", inputs.sounds["ogg"][:2000], elsewhere))
    return AttackRequest(
        sends=(build_transcription_request(build_form(('name="file"; filename="a.mp3"', data), _FIELD)),)
    )


@KINDS.add("oversized forms")
def _draw_oversized_form(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    more = draw.choice(
        (
            [('name="x"', b"y")] * 5000, [('name="file"; filename="b"', b"x")] * 2000, [("name=" + "x" * 9000, b"")],
            [('filename="a"', b"x")], [("", b"x")], [('name="model"', b"x")], [('name="response_format"', b"srt\xff")],
            [('name="prompt"', b"x" * 2_000_000)], [('name="temperature"', b"1e999")], [('name="\\ud800"', b"x")],
            [('name="model"; filename="m"', MODEL.encode())],
            [("name*=utf-8''%FF", b"x")], [("name=a\r\nX: " + "x" * 4_000_000, b"")],
            [("name=a" + "\r\nX: y" * 9999, b"")],
        )
    )  # fmt: skip
    file = ('name="file"; filename="a.wav"', inputs.sounds["wav"])
    return AttackRequest(
        sends=(build_transcription_request(build_form(file, _FIELD, *more)),), may_be_dropped=True
    )


@KINDS.add("file names with paths")
def _draw_file_name(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    name = draw.choice((inputs.marker, "../../etc/passwd", "C:\\x", "\0", "a" * 5000, inputs.trap, "é"))
    return AttackRequest(
        sends=(
            build_transcription_request(build_form((f'name="file"; filename="{name}"', b"no sound"), _FIELD)),
        )
    )


@KINDS.add("malformed forms")
def _draw_malformed_form(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
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


@KINDS.add("forms that announce gigabytes")
def _draw_lying_form_length(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    whole = build_transcription_request(build_form(('name="file"; filename="a"', b"x" * 1000), end=b""))
    length = f"Content-Length: {draw.choice((1 << 30, 1 << 33))}\r\n".encode()
    head, rest = whole.split(b"Content-Length: ", 1)
    return AttackRequest(sends=(head + length + rest.partition(b"\r\n")[2],), may_be_dropped=True)
