"""Storage: function metadata, code blobs and lease records, each a small interface with interchangeable implementations."""
