"""TODO."""

import torch


def bf16_is_fast(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 products run on units of their own (AVX-512 BF16, AMX, or a GPU that has them)."""
    if torch.device(device).type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capability = torch.backends.cpu.get_cpu_capability()
    return capability.startswith("AVX512") and bool(torch.cpu._is_avx512_bf16_supported())  # AMX implies it
