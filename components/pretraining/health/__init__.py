"""When a training goes wrong: bad numbers, ranks that disagree, ranks that hang."""
