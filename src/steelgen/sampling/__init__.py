"""Where masks come from, how a batch is drawn, how results are written."""
