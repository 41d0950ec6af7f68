"""The paper's three tables: plan, runs, report."""
