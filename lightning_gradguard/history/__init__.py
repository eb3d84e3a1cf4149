"""What a healthy step looks like, learned from accepted steps only."""
