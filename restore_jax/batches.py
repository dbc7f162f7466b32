"""The data format of the training loop and the evaluation.

A batch is a dict of NumPy arrays:
  degraded, clean: float32 [B, H, W, 3] in [0, 1];
  mask: float32 [B, H, W, 1] in {0, 1}, 1 on the defect, all zeros where it is unknown;
  has_mask: bool [B], false where the mask is unknown;
  valid: bool [B], false for padding rows in the last batch, which count in no metric;
  category, defect_type, id: strings [B], which stay on the host.
Where the images are crops of photographs, there is also
  context: float32 [B, 64, 64, 3] in [0, 1], thumbnails of the whole degraded photographs.
With `config.data.undo_gain`, there is
  gain: float32 [B, 3], the digital gain of each channel of the degraded photographs, by which
    they are divided before a network sees them; 1 where it is unknown.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

Batch = Mapping[str, np.ndarray]

GOOD = "good"
"""The defect type of images without a defect."""

DEGRADED_FILES = ("kla", "pairs", "shots")
"""The data sets whose degraded images are files rather than made by a law."""

ARRAYS = ("degraded", "clean", "mask", "has_mask", "valid")

GAIN = "gain"

CONTEXT = "context"
CONTEXT_SIZE = 64
"""Side of the thumbnails in px."""

MIN_SIZE = 11
"""Smallest side of an image in px: the window of the SSIM in training and evaluation."""


class Share(NamedTuple):
    """The part of the data that one of several processes reads.

    Attributes:
        index: index of the process, from 0.
        count: number of processes; with 1, the share is all of the data.
    """

    index: int = 0
    count: int = 1

    def rows(self, batch_size: int) -> slice:
        """Returns the rows of a batch that belong to this share."""
        own = batch_size // self.count
        return slice(self.index * own, (self.index + 1) * own)


ALL = Share()


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set, ready to be read.

    Attributes:
        name: the name that results are reported under, e.g. "mvtec_ad".
        counts: number of images by split: "train" and "val"; where there are any, "good",
            photographs without defects that are in neither, and "reference", clean photographs
            without defects to fit a detector on, whose degraded image is the clean one.
        train_images: images per training epoch; each fixed draw of an image counts.
        train_batches: yields training batches endlessly, starting at a given step (0 = the
            beginning). Every epoch has ceil(train_images / batch size) batches, the last one
            padded with rows that are not valid. The same step always yields the same batch.
            With several processes, each gets the rows of its share.
        eval_batches: yields the batches of a split once; all images of a batch have the same
            size. With several processes, each gets different images.
        load_loss_params: loads the untrained parameters of loss terms, by the name of the term
            (see `losses.loss_terms`); called only in training.
        identity: digests that identify the images of "train" and "val", by what was digested;
            {} where nothing identifies them.
        white: the white level of the 16-bit photographs; 0 where there are none.
        pairs: the file of pairs that the batches come from, a `pairs_file.Pairs`; None where
            they come from the host's pipeline.
        target: what the "clean" images of an evaluation are where there are no clean
            photographs: estimates with noise of their own; "" where they are clean.
    """

    name: str
    counts: Mapping[str, int]
    train_images: int
    train_batches: Callable[[int], Iterator[Batch]]
    eval_batches: Callable[[str], Iterator[Batch]]
    load_loss_params: Callable[[], Mapping[str, Any]] = dict
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)
    white: int = 0
    pairs: Any = None
    target: str = ""


def cached(make_data: Callable[[ConfigDict], Data]) -> Callable[[ConfigDict], Data]:
    """Returns `make_data` with a cache, which keeps images in memory from one use to the next.

    The key is all that the data depend on: `config.data`, `config.eval` and `config.seed`.
    """
    made: dict[str, Data] = {}

    def make_once(config: ConfigDict) -> Data:
        fields = config.to_dict()
        key = json.dumps([fields["data"], fields["eval"], fields["seed"]], sort_keys=True)
        if key not in made:
            made[key] = make_data(config)
        return made[key]

    return make_once
