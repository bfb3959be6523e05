"""Images: decoding, preprocessing, the pixel cache, and corruptions."""
