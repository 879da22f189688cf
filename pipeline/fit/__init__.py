"""Stage two: fit the student to stored vectors by regression. Cannot load a teacher."""

from pipeline.fit import checkpoint, head
from pipeline.fit.loader import Loader, Position
from pipeline.fit.saved_weights import start_shares
from pipeline.fit.soup import soup
from pipeline.fit.token_cache import tokenize
from pipeline.fit.trainer import Trainer, fit

__all__ = ["Loader", "Position", "Trainer", "checkpoint", "fit", "head", "soup", "start_shares", "tokenize"]
