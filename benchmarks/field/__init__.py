"""The field trial: runs that were not in the zoo, as a demanding stranger would try them.

``python -m benchmarks.field`` trains them.
"""
