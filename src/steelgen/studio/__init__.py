"""The studio, a page in the browser: paint masks and generate images for them, browse pairs, watch a run."""

import os

# Turns off gradio's telemetry; gradio reads it on import.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
