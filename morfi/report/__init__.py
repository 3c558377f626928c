"""Reports: tables for the terminal, the objects that --json prints, and a figure."""
