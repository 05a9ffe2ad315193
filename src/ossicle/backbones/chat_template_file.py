"""The chat template of an LLM, wherever its folder keeps it.

transformers' tokenizers read chat_template.jinja, additional_chat_templates/ and tokenizer_config.json; some folders
have it in chat_template.json alone, where processors look.
"""

import json
from typing import Any

from ossicle.backbones.model_files import ModelFiles
from ossicle.errors import CheckpointError
from ossicle.text_encoding import read_text_file

_FILE, _KEY = "chat_template.json", "chat_template"
_BYTE_ORDER_MARK = "\ufeff"
_FOR_OTHER_USES = {"rag", "tool_use"}
"""Names of templates that are not for a plain conversation."""


def find_chat_template(files: ModelFiles, tokenizer: Any) -> Any:
    """Returns what a tokenizer's `chat_template` should be; None if there is none.

    Templates by name stay as they are if one is the default: they are part of a tokenizer's fingerprint.

    Raises:
        CheckpointError: several templates, of which none is the default one, or a damaged chat_template.json
    """
    own = tokenizer.chat_template
    if isinstance(own, str) and own:
        return own.removeprefix(_BYTE_ORDER_MARK)
    templates = _to_named(own) or _to_named(_read_json(files))
    if not templates:
        return None
    if "default" in templates:
        return own if own else templates["default"].removeprefix(_BYTE_ORDER_MARK)
    candidates = {name: text for name, text in templates.items() if name not in _FOR_OTHER_USES} or templates
    if len(candidates) > 1:
        raise CheckpointError(
            f"{files.role} {files.name!r} has several chat templates ({', '.join(sorted(candidates))}), expected one of"
            " the name default"
        )
    return next(iter(candidates.values())).removeprefix(_BYTE_ORDER_MARK)


def _to_named(templates: Any) -> dict[str, str]:
    """Returns templates by name from any form that they are stored in: one text, a table, a list of named ones."""
    if isinstance(templates, str):
        templates = {"default": templates}
    if isinstance(templates, list):
        templates = {
            one["name"]: one.get("template")
            for one in templates
            if isinstance(one, dict) and isinstance(one.get("name"), str)
        }
    if not isinstance(templates, dict):
        return {}
    return {name: text for name, text in templates.items() if isinstance(text, str) and text}


def _read_json(files: ModelFiles) -> Any:
    """Returns what chat_template.json holds, or None without such a file."""
    path = files.find_file(_FILE)
    if path is None:
        return None
    try:
        content = json.loads(read_text_file(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{files.role} {files.name!r}: {_FILE} cannot be read ({error}); copy or download it again"
        ) from error
    return content.get(_KEY) if isinstance(content, dict) and _KEY in content else content
