"""Pure numbers: metrics, calibration, stability over seeds, and the figures that show them."""
