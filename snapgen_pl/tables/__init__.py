"""The published tables, their counts and measurements made here from the very configurations that train."""
