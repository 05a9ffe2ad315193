"""Reads ears of format 1, from when this package was named earshot: their config and weights under today's names."""

from typing import Any

import torch

FORMAT = 1
OLD_VERSION_KEY, VERSION_KEY = "earshot_version", "ossicle_version"
_FORMS = {"left": "query", "right": "diva"}
_FINGERPRINTS = {"recogniser": "decoder_vocabulary"}
_WEIGHTS = {
    "spotter.neighbourhood.": "token_detector.convolution.",
    "spotter.": "token_detector.",
    "words.": "vocabulary_head.",
    "prompt": "prompt_embeddings",
}
"""Beginnings of parameter names; the first that fits counts."""


def upgrade_config(config: dict[str, Any], to_format: int) -> dict[str, Any]:
    """Returns the config of an ear of format 1 as today's format has it."""
    upgraded = {VERSION_KEY if key == OLD_VERSION_KEY else key: value for key, value in config.items()}
    upgraded["format"] = to_format
    if isinstance(connector := config.get("connector"), dict) and isinstance(connector.get("form"), str):
        upgraded["connector"] = {**connector, "form": _FORMS.get(connector["form"], connector["form"])}
    if isinstance(fingerprints := config.get("fingerprints"), dict):
        upgraded["fingerprints"] = {_FINGERPRINTS.get(key, key): value for key, value in fingerprints.items()}
    return upgraded


def upgrade_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the weights of an ear of format 1 under today's parameter names."""
    return {_upgrade_name(name): weight for name, weight in weights.items()}


def _upgrade_name(name: str) -> str:
    for old, new in _WEIGHTS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
