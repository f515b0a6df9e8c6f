"""Run a program of unknown intent so that it can do no harm. Usable on its own: the standard library and bubblewrap."""

from rewards.sandbox.box import Box, Ended, Finished
from rewards.sandbox.bubblewrap import SandboxUnavailableError
from rewards.sandbox.limits import Limits
from rewards.sandbox.sandbox import Sandbox

__all__ = ["Box", "Ended", "Finished", "Limits", "Sandbox", "SandboxUnavailableError"]
