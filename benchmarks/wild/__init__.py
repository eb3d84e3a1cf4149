"""Runs in the spirit of what strangers write: beginners' faults, and healthy runs that look like none of ours."""
