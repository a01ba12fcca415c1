"""Models as files for other runtimes, compared with the model before they are declared good."""
