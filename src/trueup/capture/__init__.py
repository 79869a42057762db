"""Capture: production traffic becomes `Interaction` and `Feedback` records."""

from trueup.capture.config import CaptureConfig
from trueup.capture.recorder import Recorder

__all__ = ["CaptureConfig", "Recorder"]
