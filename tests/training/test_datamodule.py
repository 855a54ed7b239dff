from types import SimpleNamespace

import numpy as np
import torch

from moe_beyond.data.features import token_features
from moe_beyond.data.tokens import TokenEncoder
from moe_beyond.training.datamodule import Collate, RoutingData, WindowDataset
from tests.traces_of_chance import chance_trace


def test_windows_cover_every_token_once_and_cross_no_prompt():
    trace = chance_trace(10)
    for seed in range(3):
        windows = WindowDataset(trace, 8, np.random.default_rng(seed)).windows
        tokens = [token for start, end in windows for token in range(start, end)]
        assert sorted(tokens) == list(range(trace.num_tokens))
        assert all(end - start <= 8 for start, end in windows)
        inner = set(trace.prompt_offsets.tolist())
        assert not [t for start, end in windows for t in range(start + 1, end) if t in inner]


def test_padding_is_marked_and_content_is_the_traces():
    trace = chance_trace(6)
    features = token_features(trace, TokenEncoder.fit(trace, 1, 512))
    batch = Collate(trace, features)(WindowDataset(trace, 64).windows)
    assert int(batch.real_BT.sum()) == trace.num_tokens
    assert torch.equal(batch.experts_BTLK[batch.real_BT], torch.from_numpy(trace.experts_TLK.astype(np.int64)))


def test_batches_follow_from_the_seed_and_the_epoch(monkeypatch):
    trace = chance_trace(20)
    encoder = TokenEncoder.fit(trace, 1, 512)

    def batches(seed, epoch):
        data = RoutingData(trace, trace, encoder, length=8, batch_size=4, seed=seed)
        monkeypatch.setattr(data, "trainer", SimpleNamespace(current_epoch=epoch, global_rank=0, world_size=1))
        loader = data.train_dataloader()
        once, again = ([batch.tokens_BT.tolist() for batch in loader] for _ in range(2))
        assert once == again, "Lightning may start the iteration twice"
        return once

    assert batches(1, 0) == batches(1, 0)
    assert batches(1, 0) not in (batches(1, 1), batches(2, 0))
