"""Scripts that measure the project against plain implementations. Not part of the tests."""
