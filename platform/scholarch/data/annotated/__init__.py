"""Data of evaluations: pictures with what is known of them."""
