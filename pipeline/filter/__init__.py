"""The filter stage: training pairs that the teacher itself would not find are left out; each query's candidates.

Between encode and fit, and optional. It reads corpus and store, and loads no model.
"""

from pipeline.filter.candidates import CANDIDATES
from pipeline.filter.filtering import filter_corpus

__all__ = ["CANDIDATES", "filter_corpus"]
