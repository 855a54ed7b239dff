"""Which kernels numeric libraries choose, so that a result does not depend on the processor's instruction set.

Must be imported, and `pin` called, before numpy and torch: they read these variables once.

What was found (docs/reproducibility.md): with the variables pinned, PyTorch and MKL compute the same bits with and
without AVX-512 on processors of one maker, at about the same speed. Across makers they do not: MKL's square root and
error function use the processor's own approximations, and a choice of kernels that is equal for matrix products there
takes half as long again. onnxruntime has no such variable; with and without AVX-512 its logits differ by 1e-5.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Literal

Numerics = Literal["portable", "native"]
"""`portable`: as pinned below. `native`: whatever is fastest here, for a fit that needs it (bfloat16)."""

PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_CBWR": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    # sums in threads depend on their number; what gains from threads sets them itself
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def pin(environment: MutableMapping[str, str], numerics: Numerics) -> None:
    """Set the variables in an environment, replacing earlier values; `native` changes nothing."""
    if numerics == "portable":
        environment.update(PORTABLE)
