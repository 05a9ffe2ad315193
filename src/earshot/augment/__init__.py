"""One clip heard in another way: on its samples or on its spectrogram, drawn from one seed alone.

Nothing depends on a clip's batch, on the process that reads it or on how many there are, so that a run which
goes on elsewhere hears what it would have heard.
"""

from earshot.augment.samples import Augmenter, add_noise, speed
from earshot.augment.spectrograms import augment, mask_patches

__all__ = ["Augmenter", "add_noise", "augment", "mask_patches", "speed"]
