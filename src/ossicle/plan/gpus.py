"""GPUs by name, with their peak FLOP/s and memory."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Source: the vendors' data sheets. Peaks are for dense bfloat16 matrices summed in float32; the vendors' numbers
    "with sparsity" are twice as high.
    """

    name: str
    pattern: str
    """Regular expression for the name that the driver reports."""
    peak_tflops: float
    memory_gb: float
    """In units of 1e9 bytes, as the driver reports them."""


GPUS = (
    Gpu("RTX 3090", r"RTX 3090( Ti)?$", 71.0, 25.3),
    Gpu("RTX 4090", r"RTX 4090$", 165.2, 25.3),
    Gpu("RTX 5090", r"RTX 5090$", 209.5, 33.7),
    Gpu("L4", r"\bL4$", 121.0, 23.6),
    Gpu("A10", r"\bA10$", 125.0, 23.6),
    Gpu("RTX A6000", r"RTX A6000$", 154.8, 51.0),
    Gpu("RTX 6000 Ada", r"RTX 6000 Ada", 364.2, 51.0),
    Gpu("L40S", r"\bL40S$", 362.0, 47.7),
    Gpu("A100 40 GB", r"A100\b.*40GB$", 312.0, 42.3),
    Gpu("A100 80 GB", r"A100\b.*80GB( PCIe)?$", 312.0, 85.1),
    Gpu("H100 PCIe", r"H100 PCIe$", 756.0, 85.1),
    Gpu("H100 NVL", r"H100 NVL$", 835.0, 100.0),
    Gpu("H100", r"H100( SXM5?)?( 80GB HBM3)?$", 989.0, 85.1),
    Gpu("H200 NVL", r"H200 NVL$", 835.0, 150.0),
    Gpu("H200", r"H200$|GH200", 989.0, 150.0),
    Gpu("B200", r"B200", 2250.0, 191.0),
    Gpu("MI300X", r"MI300X", 1307.0, 206.0),
)
SHOWN_GPUS = ("RTX 3090", "RTX 4090", "L40S", "A100 40 GB", "A100 80 GB", "H100", "H200", "B200")
"""The GPUs that a plan shows."""


def look_up_peak_flops(device_name: str) -> float | None:
    """Returns the dense bfloat16 FLOP/s of a GPU, by its `torch.cuda.get_device_name`; None if it is unknown."""
    for gpu in GPUS:
        if re.search(gpu.pattern, device_name):
            return gpu.peak_tflops * 1e12
    return None
