"""Ears in transformers: importing this registers them with its Auto classes.

`import ossicle` alone does not: it would load transformers, which takes seconds. `trust_remote_code=True` imports this
through the file that every ear has for it.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from ossicle.hf.configuration import OssicleConfig
from ossicle.hf.modeling import OssicleForConditionalGeneration
from ossicle.hf.processing import OssicleProcessor

__all__ = ["OssicleConfig", "OssicleForConditionalGeneration", "OssicleProcessor"]


def _register() -> None:
    AutoConfig.register(OssicleConfig.model_type, OssicleConfig, exist_ok=True)
    for auto_class in (AutoModel, AutoModelForMultimodalLM):
        auto_class.register(OssicleConfig, OssicleForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(OssicleConfig, OssicleProcessor, exist_ok=True)
    # The pipeline looks its model up by name here, and complains of those that are registered only.
    names: dict[str, str] = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    names[OssicleConfig.model_type] = OssicleForConditionalGeneration.__name__


_register()
