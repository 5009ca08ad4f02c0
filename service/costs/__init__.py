"""What things cost: requests, runs and a year, in money; and the projects' budgets."""
