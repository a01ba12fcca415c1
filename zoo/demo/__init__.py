"""A trained model for people and programs: a page with a REST interface, and an endpoint."""
