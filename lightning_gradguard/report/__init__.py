"""The story of a run without TensorBoard: journal -> story -> terminal, notebook, or one self-contained page."""

from lightning_gradguard.report.following import follow
from lightning_gradguard.report.notebook import Shown, fragment, show
from lightning_gradguard.report.page import render_page
from lightning_gradguard.report.story import Headline, RunStory, find_journals, read_stories, read_story
from lightning_gradguard.report.terminal import brief, render_text

__all__ = [
    "Headline",
    "RunStory",
    "Shown",
    "brief",
    "find_journals",
    "follow",
    "fragment",
    "read_stories",
    "read_story",
    "render_page",
    "render_text",
    "show",
]
