"""One frozen teacher, many students: groups of processes, the exchange between them, and their plan."""
