"""What goes along with a bundle, to be run on a Mac. None of it was run on one by who wrote it."""
