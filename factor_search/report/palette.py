"""Colours of the plots: Okabe and Ito's, distinguishable with any colour vision."""

METHOD_COLOURS = {"yarn": "#0072B2", "ntk": "#009E73", "pi": "#CC79A7", "ntk-critical": "#E69F00", "llama3": "#56B4E9"}
"""The closed forms that are plotted."""
FOUND_COLOUR = "#D55E00"
