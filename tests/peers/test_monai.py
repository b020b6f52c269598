"""Windows blended as by MONAI's `sliding_window_inference`."""

import numpy as np
import pytest

from deeplab_jax.evaluate.windows import mean_of_windows, window_starts
from tests.evaluate.test_windows import CLASSES, made_up_probabilities, put_together

torch = pytest.importorskip("torch")
inferers = pytest.importorskip("monai.inferers")


def test_monai_has_the_same_weights_and_mean() -> None:
    image = np.random.default_rng(1).integers(0, 256, (70, 100, 1), np.uint8)
    # Windows that fit without a shift, since MONAI moves only the last one.
    how = {"window": (30, 40), "overlap": 0.5, "blend": "gaussian"}
    assert np.diff(window_starts(75, 30, 0.5)).tolist() == [15, 15, 15]
    image = np.concatenate([image, image[:5]])

    def run(batch):
        seen = batch.numpy().transpose(0, 2, 3, 1).astype(np.uint8)
        sizes = np.full((len(seen), 2), (30, 40))
        return torch.from_numpy(made_up_probabilities(seen, sizes).transpose(0, 3, 1, 2).copy())

    theirs = inferers.sliding_window_inference(
        torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32)), (30, 40), 1, run, 0.5, mode="gaussian"
    )
    tiles = mean_of_windows(image, made_up_probabilities, size=(75, 100), classes=CLASSES, **how)
    np.testing.assert_allclose(put_together(tiles, (75, 100)), theirs[0].numpy().transpose(1, 2, 0), atol=2e-6)
