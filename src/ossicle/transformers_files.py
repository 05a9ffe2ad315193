"""What transformers looks for in the folder of an ear: keys of its config.json, and a file for trust_remote_code."""

MODEL_TYPE = "ossicle"
SHIM = "modeling_ossicle.py"
_CLASSES = {
    "AutoConfig": "OssicleConfig",
    "AutoModel": "OssicleForConditionalGeneration",
    "AutoModelForMultimodalLM": "OssicleForConditionalGeneration",
    "AutoProcessor": "OssicleProcessor",
}
AUTO_MAP = {name: f"{SHIM.removesuffix('.py')}.{kind}" for name, kind in _CLASSES.items()}
CONFIG_KEYS = {
    "model_type": MODEL_TYPE,
    "architectures": [_CLASSES["AutoModel"]],
    "auto_map": AUTO_MAP,
}
SHIM_TEXT = '''"""Loads this ear with trust_remote_code=True; needs `pip install ossicle`, and has no code of its own."""

from ossicle.hf import OssicleConfig, OssicleForConditionalGeneration, OssicleProcessor

__all__ = ["OssicleConfig", "OssicleForConditionalGeneration", "OssicleProcessor"]
'''
