<<<<<<< Updated upstream
"""Storage: function metadata, code blobs, lease records: small interfaces with interchangeable implementations."""
=======
"""Storage: function metadata, code blobs, lease records; small interfaces, interchangeable implementations."""
>>>>>>> Stashed changes
