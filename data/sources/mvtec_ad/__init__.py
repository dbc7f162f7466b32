"""MVTec AD, from the user's own copy: finds it, prepares it once and reads it."""

from data.sources.mvtec_ad.mvtec_ad_dataset_builder import Builder
from data.sources.mvtec_ad.records import load

__all__ = ["Builder", "load"]
