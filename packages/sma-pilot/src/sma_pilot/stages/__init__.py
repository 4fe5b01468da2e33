"""A pilot in stages: which look comes next, what it is taken on, and what became of each stage."""
