"""What levels of the Continuum Memory System do with a gradient: accumulate, clip, step, cap, in place."""

from hope_kernels.cms_update.level import ElementRule, LevelWrite, Written, cap_drift, clip_norm
from hope_kernels.cms_update.public import write_

__all__ = ["ElementRule", "LevelWrite", "Written", "cap_drift", "clip_norm", "write_"]
