"""Requests with invalid JSON, or with valid JSON of absurd content."""

import json
import random
from typing import Any

from benchmarks.security.attack_kinds import (
    MODEL,
    AttackInputs,
    AttackKinds,
    AttackRequest,
    attack_with_message,
    build_audio_part,
    build_chat_body,
    build_chat_request,
    build_post,
    build_user_message,
)

KINDS = AttackKinds()
_FIELDS = (
    "model", "messages", "stream", "stream_options", "temperature", "top_p", "max_tokens", "max_completion_tokens",
    "stop", "seed", "n", "logit_bias", "logprobs", "top_logprobs", "response_format", "modalities", "tools",
    "tool_choice", "frequency_penalty", "presence_penalty", "functions", "nonsense", "__class__", "\ud800",
)  # fmt: skip
_RESPONSE_FIELDS = (
    "input", "instructions", "include", "text", "reasoning", "previous_response_id", "background", "truncation",
    "max_output_tokens", "metadata", "parallel_tool_calls",
)  # fmt: skip
_WRONG: tuple[Any, ...] = (
    0, -1, 7.5, "", "x", True, False, [], {}, [None], {"a": 1}, [[]], [{}], "\ud800", "\0", 10**400, -(10**30), [1] * 99,
)  # fmt: skip


def with_raw(name: str, value: str) -> bytes:
    """Builds a request with the raw JSON text of a field."""
    return build_post(json.dumps(build_chat_body({name: "HERE"})).replace('"HERE"', value).encode())


@KINDS.add("invalid JSON")
def _draw_invalid_json(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    body = json.dumps(build_chat_body({})).encode()
    attack = draw.choice(
        (
            b"", b"{", body[:-1], body + b"}", b"null", b"[]", b"7", b'"x"', b"\xff\xfe\xfd", b"\0" * 1000, b"<x/>",
            body.replace(b"{", b"{,"), body.replace(b'"', b"'"), b"model=pocket/ear&messages=x", b"\x1f\x8b\x08" + body,
            body.replace(b"japan", b"\xc3\x28"), body.decode().encode("utf-16")[:-1], b"\xef\xbb\xbf" * 2 + body,
        )
    )  # fmt: skip
    return AttackRequest(sends=(build_post(attack),))


@KINDS.add("deep JSON")
def _draw_deep_json(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    n = draw.choice((50, 900, 2000, 100_000, 3_000_000))
    nest = draw.choice(("[" * n + "]" * n, '{"a":' * n + "7" + "}" * n))
    name = draw.choice(("messages", "model", "stop", "logit_bias", "tools", "temperature", "nonsense"))
    return AttackRequest(sends=(with_raw(name, nest),))


@KINDS.add("wide JSON", max_requests=12)
def _draw_wide_json(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    n = 4_000_000
    wide = draw.choice(("[" + "[]," * n + "[]]", "{" + '"":{},' * n + '"":0}', "[" + "1," * n + "1]"))
    return AttackRequest(
        sends=(with_raw(draw.choice(("messages", "stop", "logit_bias", "metadata")), wide),),
        may_be_dropped=True,
    )


@KINDS.add("wrong types in a response")
def _draw_wrong_response(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    fields: dict[str, Any] = {"model": MODEL, "input": "what is the capital of japan"}
    wrong = draw.choice(_WRONG)
    match draw.randrange(4):
        case 0:
            fields[draw.choice((*_FIELDS, *_RESPONSE_FIELDS))] = wrong
        case 1:
            fields["input"] = [{"type": draw.choice(("message", "function_call", "reasoning", wrong))}, wrong]
        case 2:
            part = {
                "type": draw.choice(("input_text", "input_audio", "input_image", wrong)),
                "input_audio": wrong,
            }
            fields["input"] = [{"role": "user", "content": [part]}]
        case _:
            item = {"role": "user", "content": "x", "type": "message", "call_id": "a", "arguments": "{}"}
            fields["input"] = [{**item, draw.choice(list(item)): wrong}]
    body = json.dumps({**fields, "stream": draw.random() < 0.5, "max_output_tokens": 4}).encode()
    return AttackRequest(sends=(build_post(body, path="/v1/responses"),), may_be_answered=True)


@KINDS.add("wrong types")
def _draw_wrong_types(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    body = json.dumps(build_chat_body({draw.choice(_FIELDS): draw.choice(_WRONG)}))
    return AttackRequest(sends=(build_post(body.encode()),), may_be_answered=True)  # 0 is a temperature


@KINDS.add("wrong types in messages")
def _draw_wrong_messages(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    wrong = draw.choice((*_WRONG, None))
    message = draw.choice(
        (
            wrong,
            {"role": wrong, "content": "x"},
            {"role": "user", "content": wrong},
            {"role": "user", "content": wrong},
            build_user_message(wrong),
            build_user_message({"type": wrong}),
            build_user_message({"type": "text", "text": wrong}),
            build_user_message({"type": "input_audio", "input_audio": wrong}),
            build_user_message({"type": "input_audio", "input_audio": {"data": wrong, "format": "wav"}}),
            {"role": "user", "content": "x", "tool_calls": wrong},
            {"role": "user", "content": "x", draw.choice(("k", "k" * 1_000_000, "\ud800")): 1},
            {"role": "user"},
            {"content": "x"},
        )
    )
    return AttackRequest(
        sends=(build_chat_request(messages=[message]),), may_be_answered=True
    )  # "x" is a text


@KINDS.add("huge numbers")
def _draw_numbers(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    name = draw.choice(
        ("n", "max_tokens", "max_completion_tokens", "seed", "temperature", "top_p", "top_logprobs")
    )
    number = draw.choice(("1e999", "-1e999", "9" * 400, "9" * 5000, "-" + "9" * 400, "1e12", "1" + "0" * 20))
    return AttackRequest(sends=(with_raw(name, number),))


@KINDS.add("NaN and infinity")
def _draw_nan(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    return AttackRequest(
        sends=(with_raw(draw.choice(_FIELDS[:-1]), draw.choice(("NaN", "Infinity", "-Infinity", "nan"))),)
    )


@KINDS.add("duplicate keys")
def _draw_duplicate_key(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    body = json.dumps(build_chat_body({}))
    again = draw.choice(('"model": "another"', '"messages": []', '"n": 1, "n": 1', '"model": "pocket/ear"'))
    return AttackRequest(
        sends=(build_post(draw.choice((f"{body[:-1]}, {again}}}", f"{{{again}, {body[1:]}")).encode()),)
    )


@KINDS.add("lone surrogates and control tokens")
def _draw_control_text(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    bad = draw.choice(("\ud800", "\udfff x", "<|end|>", "<|system|>", "<|begin|><|user|>", "x<|assistant|>"))
    text = draw.choice((bad, f"what is {bad} the", "é" * 50 + bad))
    return attack_with_message(
        {"role": "user", "content": draw.choice((text, [{"type": "text", "text": text}]))}
    )


@KINDS.add("long texts")
def _draw_long_text(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    text = draw.choice(("a", "hello ", "\n", "é", "\0", "🙂", "\u0301", "ﷺ")) * draw.choice(
        (10_000, 1_000_000)
    )
    before = draw.choice(([], [build_audio_part(inputs.sounds["flac"], "flac")]))
    return attack_with_message(build_user_message(*before, {"type": "text", "text": f"x{text}"}))


@KINDS.add("a text of 40 MB", max_requests=2)
def _draw_longest_text(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    return attack_with_message({"role": "user", "content": "hello " * 7_000_000})


@KINDS.add("too many turns")
def _draw_turns(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    pair = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return AttackRequest(
        sends=(build_chat_request(messages=[*pair * draw.choice((400, 499, 600, 50_000)), pair[0]]),)
    )


@KINDS.add("too many stop strings")
def _draw_stops(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    stop = draw.choice(
        (
            ["a"] * 17,
            ["a"] * 1_000_000,
            "a" * 257,
            "a" * 1_000_000,
            [""],
            "",
            [["a"]],
            ["a", None],
            "\0" * 999,
        )
    )
    return AttackRequest(sends=(build_chat_request(stop=stop),))


@KINDS.add("too many answers")
def _draw_answers(draw: random.Random, inputs: AttackInputs) -> AttackRequest:
    name, value = draw.choice(
        (
            ("n", 10**9),
            ("n", 17),
            ("n", 0),
            ("n", -1),
            ("max_tokens", 10**12),
            ("max_tokens", 0),
            ("max_tokens", -5),
        )
    )
    return AttackRequest(sends=(build_post(json.dumps(build_chat_body({name: value})).encode()),))
