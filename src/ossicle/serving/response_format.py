"""The shape that a chat request asks of its answer (`response_format`), as the local engine supports it."""

from collections.abc import Mapping
from typing import Any

from ossicle.chat.grammar import AnswerGrammar, build_json_grammar
from ossicle.serving.errors import ApiError


def read_response_format(body: Mapping[str, Any]) -> AnswerGrammar | None:
    """Returns the grammar of the answer; None for plain text.

    Raises:
        ApiError: malformed
        RequestError: a schema that is too long
    """
    value = body.get("response_format")
    if value is None or value == {"type": "text"}:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object":
        return build_json_grammar({"type": "object"})
    wrapper = value.get("json_schema") if isinstance(value, dict) and kind == "json_schema" else None
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise ApiError(
            'response_format is malformed, expected {"type": "json_object"}, or {"type": "json_schema", "json_schema":'
            ' {"name": ..., "schema": {...}}}',
            param="response_format",
        )
    return build_json_grammar(schema)
