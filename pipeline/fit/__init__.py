"""Stage two: fit the student to stored vectors by regression. Cannot load a teacher."""

from pipeline.fit import checkpoint, head
from pipeline.fit.estimate import FitEstimate
from pipeline.fit.estimate import estimate as estimate_fit
from pipeline.fit.launch import end_with_parent, launch
from pipeline.fit.loader import Loader, Position
from pipeline.fit.ranks import LOST, RankLostError, Ranks, is_one_of_several, joined
from pipeline.fit.saved_weights import start_shares
from pipeline.fit.soup import soup
from pipeline.fit.token_cache import tokenize
from pipeline.fit.trainer import Trainer, fit

__all__ = [
    "LOST",
    "FitEstimate",
    "Loader",
    "Position",
    "RankLostError",
    "Ranks",
    "Trainer",
    "checkpoint",
    "end_with_parent",
    "estimate_fit",
    "fit",
    "head",
    "is_one_of_several",
    "joined",
    "launch",
    "soup",
    "start_shares",
    "tokenize",
]
