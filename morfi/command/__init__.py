"""The options that commands take, where their values come from, and how a command answers; with click."""
