"""The doctor: looks at every file of a data set and says what would fool a model or its scores."""
