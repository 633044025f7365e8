"""A page in the browser: paint masks and draw for them, look through folders of pairs, watch a run."""

import os

# Read when gradio is imported: nothing is told to anyone.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
