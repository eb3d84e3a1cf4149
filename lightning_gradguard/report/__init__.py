"""The story of a run without TensorBoard: journal -> story -> terminal or one self-contained page."""

from lightning_gradguard.report.page import render_page
from lightning_gradguard.report.story import Headline, RunStory, find_journals, read_stories, read_story
from lightning_gradguard.report.terminal import render_text

__all__ = ["Headline", "RunStory", "find_journals", "read_stories", "read_story", "render_page", "render_text"]
