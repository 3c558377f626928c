"""What a person reads: tables for the terminal, the objects that --json prints, and a figure."""
