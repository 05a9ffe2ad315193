"""The config.json of an ear as transformers' config."""

import os
from typing import Any, ClassVar

from transformers import PreTrainedConfig

from ossicle import checkpoint
from ossicle.ear import Ear, EarSettings
from ossicle.settings_io import from_table, to_table
from ossicle.transformers_files import MODEL_TYPE
from ossicle.version import __version__


class OssicleConfig(PreTrainedConfig):
    """The settings of an ear: its backbones, its prompt and its connector, as in a recipe."""

    model_type: ClassVar[str] = MODEL_TYPE

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        prompt: dict[str, Any] | None = None,
        connector: dict[str, Any] | None = None,
        fingerprints: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.base, self.prompt, self.connector, self.fingerprints = base, prompt, connector, fingerprints
        options: Any = {"format": checkpoint.FORMAT, "ossicle_version": __version__, **kwargs}
        super().__init__(**options)

    @classmethod
    def from_ear(cls, ear: Ear) -> "OssicleConfig":
        """Returns the config of an ear in memory, which has no fingerprints yet."""
        return cls(**to_table(ear.settings), architectures=["OssicleForConditionalGeneration"])

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> Any:
        """Reads the config of an ear, also of one that was written before there were these classes.

        Raises:
            CheckpointError: not an ear, or a damaged one
        """
        returns_unused = kwargs.pop("return_unused_kwargs", False)
        known = {name: kwargs.pop(name) for name in ("revision", "token") if name in kwargs}
        for name in ("cache_dir", "force_download", "local_files_only", "code_revision", "trust_remote_code"):
            kwargs.pop(name, None)
        table = checkpoint.read_config(str(pretrained_model_name_or_path), **known)
        config = cls(**table)
        config._name_or_path = str(pretrained_model_name_or_path)
        kwargs = {name: value for name, value in kwargs.items() if not name.startswith("_")}
        return (config, kwargs) if returns_unused else config

    @property
    def settings(self) -> EarSettings:
        """The settings as ossicle has them."""
        tables = {name: getattr(self, name) or {} for name in ("base", "prompt", "connector")}
        return from_table(EarSettings, tables)
