"""The model core: one backbone in many roles, exact log-probs, a sampler, a catalogue.

Importing this package loads no torch; the modules inside do.
"""

from trueup.models.catalog import CATALOG, folder_of, home, pull
from trueup.models.config import ModelConfig

__all__ = ["CATALOG", "ModelConfig", "folder_of", "home", "pull"]
