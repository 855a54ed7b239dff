"""What counts alone say is what can be counted by hand."""

import numpy as np

from moe_beyond.assess.counts import assess_counts
from moe_beyond.formats.counts import ExpertCounts


def test_coverage_is_the_share_of_the_most_popular_experts():
    counts = ExpertCounts("m", (1, 2), np.array([[50, 10, 0, 0, 0], [25, 5, 5, 5, 0]]), "by hand", 1, (2**20, 2**20))
    card = assess_counts(counts)
    assert card["input"] == "counts only"
    assert "verdict" not in card
    assert card["coverage"] == {"0.05": 0.5, "0.1": 0.5, "0.2": 0.75, "0.25": 0.75, "0.5": 0.95}
    assert card["experts_for"] == {"0.5": 1, "0.8": 3, "0.9": 4, "0.95": 5}
    assert (card["choices"], card["tokens"], card["never_chosen_share"]) == (100, 60, 0.4)
    assert card["experts_mib"] == 10
