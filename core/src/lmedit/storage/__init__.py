"""Files on disk: written whole, checked by digest, read without trust."""
