"""What the training loop and the evaluation take as data.

A batch is a dict of NumPy arrays:
  degraded, clean: float32 [B, H, W, 3] in [0, 1];
  mask: float32 [B, H, W, 1] in {0, 1}, 1 on the defect, all zeros where it is not known;
  has_mask: bool [B], false where the mask is not known;
  valid: bool [B], false on the rows that fill up a last batch; no figure counts them;
  category, defect_type, id: strings [B], which stay on the host.
Where the images are crops of photographs, there is also
  context: float32 [B, 64, 64, 3] in [0, 1], the thumbnails of the whole degraded photographs.
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

ARRAYS = ("degraded", "clean", "mask", "has_mask", "valid")

CONTEXT = "context"
CONTEXT_SIZE = 64
"""Side of the thumbnails in px."""

MIN_SIZE = 11
"""Sides are at least so many px: the SSIM of training and evaluation has a window of that."""


class Share(NamedTuple):
    """The part of the data that one of several processes reads.

    Attributes:
        index: of the process, from 0.
        count: of the processes; 1: all of the data are its part.
    """

    index: int = 0
    count: int = 1

    def of(self, batch_size: int) -> slice:
        """Returns which rows of a batch are its own."""
        own = batch_size // self.count
        return slice(self.index * own, (self.index + 1) * own)


ALL = Share()


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set, ready to be read.

    Attributes:
        name: as it stands in the results, e.g. "mvtec_ad".
        counts: number of images by split: "train" and "val"; where there are any, "good",
            photographs without defects that are in neither, and "reference", clean photographs
            without defects to fit a detector on, whose degraded image is the clean one.
        train_images: images of one training epoch; each fixed draw of an image counts.
        train_batches: from a step (0 = the start) on, the batches of training without end.
            Every epoch has ceil(train_images / batch size) of them, its last one filled up with
            rows that are not valid. The same step always yields the same batch. Of several
            processes, each gets the rows of its share.
        eval_batches: the batches of a split, once; the images of a batch are of one size. Of
            several processes, each gets images of its own.
        load_loss_params: loads the parameters that terms of the loss take and that are not
            trained, by the name of the term (see `losses.loss_terms`); only a training asks
            for them.
        identity: digests that tell the images of "train" and "val" from others, by what they
            are digests of; {} where nothing tells.
        pairs: the file of pairs that the batches come from, a `pairs_file.Pairs`; None where
            they come from the host's pipeline.
    """

    name: str
    counts: Mapping[str, int]
    train_images: int
    train_batches: Callable[[int], Iterator[Batch]]
    eval_batches: Callable[[str], Iterator[Batch]]
    load_loss_params: Callable[[], Mapping[str, Any]] = dict
    identity: Mapping[str, str] = dataclasses.field(default_factory=dict)
    pairs: Any = None


def remembering(make_data: Callable[[ConfigDict], Data]) -> Callable[[ConfigDict], Data]:
    """Makes the same data only once: their images stay in memory from one use to the next."""
    made: dict[str, Data] = {}

    def make_once(config: ConfigDict) -> Data:
        fields = config.to_dict()
        key = json.dumps([fields["data"], fields["eval"], fields["seed"]], sort_keys=True)
        if key not in made:
            made[key] = make_data(config)
        return made[key]

    return make_once
