"""Records of measured runs and the tables that are built from them alone."""
