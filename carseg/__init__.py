"""carseg: a folder of car photos and masks becomes a measured segmentation model.

The way the data takes: photo → tensor → logits → mask → score, one module each
(`photos`, `augment`, `u2net`, `predict`, `metrics`); `dvc.yaml` shows the order of the stages.
"""

import os

# albumentations asks the network for a newer version of itself on import unless told not to.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

__version__ = "0.1.0"
