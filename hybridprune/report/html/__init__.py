"""One self-contained page: ``hybridprune report RESULTS --html out.html``."""

from hybridprune.report.html.details import Options
from hybridprune.report.html.page import render_page

__all__ = ["Options", "render_page"]
