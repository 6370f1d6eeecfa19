"""From pictures in any place to a packed data set."""
