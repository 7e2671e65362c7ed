"""Tables for the terminal, charts and the HTML page, drawn from saved records alone."""
