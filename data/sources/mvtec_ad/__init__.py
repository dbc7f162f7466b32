"""MVTec AD, from the user's own copy: finding it, preparing it once and reading it."""

from data.sources.mvtec_ad.mvtec_ad_dataset_builder import Builder
from data.sources.mvtec_ad.records import load

__all__ = ["Builder", "load"]
