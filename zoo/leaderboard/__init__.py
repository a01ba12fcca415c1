"""The leaderboard: ranked tables, built only from the records of measured runs."""
