"""The page about a run: made of what the other stages wrote. Loads no model."""

from pipeline.report import figures
from pipeline.report.page import Sources, render

__all__ = ["Sources", "figures", "render"]
