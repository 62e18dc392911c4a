"""Colours of the plots: the Okabe-Ito palette, which readers with any colour vision can distinguish."""

METHOD_COLOURS = {"yarn": "#0072B2", "ntk": "#009E73", "pi": "#CC79A7", "ntk-critical": "#E69F00", "llama3": "#56B4E9"}
"""The closed forms that all plots show."""
OTHER_COLOURS = ("#000000", "#999999")
"""Of those that were compared with because they were best on the search documents."""
FOUND_COLOUR = "#D55E00"
