"""The reproduction of the paper: which runs make its figures, making the runs, its claims and the report."""
