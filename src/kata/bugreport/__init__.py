"""A report for a bug: what is planned, collected with deadlines, freed of secrets and put into one archive."""
