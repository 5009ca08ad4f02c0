"""Human review: blind pairs of answers, and the agreement between a judge and the reviewers."""
