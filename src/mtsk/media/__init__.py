"""Files to arrays: sound at 16 kHz and mouth crops at 25 frames/s, on one clock."""

from mtsk.media.container import MAX_DURATION_S, MediaError
from mtsk.media.load import Media, load_media
from mtsk.media.mouth import MouthTrack, MouthTracker
from mtsk.media.sheet import contact_sheet
from mtsk.types import FaceModels

__all__ = [
    "MAX_DURATION_S",
    "FaceModels",
    "Media",
    "MediaError",
    "MouthTrack",
    "MouthTracker",
    "contact_sheet",
    "load_media",
]
