"""Chart primitives: intervals, curves, heat map, bars and surface, each a Vega-Lite specification of plain numbers."""
