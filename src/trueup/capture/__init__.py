"""Capture: production traffic becomes `Interaction` and `Feedback` records."""

from trueup.capture.config import CaptureConfig
from trueup.capture.recorder import Kept, Recorder

__all__ = ["CaptureConfig", "Kept", "Recorder"]
