"""Command line: parses arguments, loads a config, calls one function, prints. Nothing else prints."""

import sys

if sys.platform == "win32":
    # Runs and their locks rely on what Windows lacks, such as renaming folders whose files are open.
    sys.stderr.write("steelgen: needs Linux or macOS; on Windows, install it in WSL2: `wsl --install`\n")
    sys.exit(2)
