"""The device that models run on, and what it is fast at."""

import torch


def best_device() -> torch.device:
    """The GPU where PyTorch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_fast(device: torch.device | str = "cpu") -> bool:
    """Whether the device computes bfloat16 products in hardware (AVX-512 BF16, AMX, or a GPU that has them)."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capability = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())  # AMX implies it
