"""The search for the predictor that saves most time per token on a device."""

from moe_beyond.tuning.choice import Search, choose
from moe_beyond.tuning.inputs import Inputs
from moe_beyond.tuning.search import search, work
from moe_beyond.tuning.storage import StudyPlace, place_of

__all__ = ["Inputs", "Search", "StudyPlace", "choose", "place_of", "search", "work"]
