"""Image features, distances between sets of images, and the published tables."""
